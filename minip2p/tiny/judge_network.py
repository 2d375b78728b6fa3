"""The judge's network: a small U-Net that reads what a picture of the tiny world shows, and where.

It answers separately where there is an object (for every pixel) and which object it is (for cells of 4×4 pixels). The
product of the two is the object's soft mask. The mask's area and its densest cells tell whether the object is present;
the features under it tell its colour. Background, style and the strength of the graded attributes are read from the
whole picture. Module and parameter names are keys of weights/judge/judge.safetensors.

Axes: b batch, c channels, h height, w width, n objects, k classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minip2p.tiny.scenes import ATTRIBUTES, BACKGROUNDS, COLOURS, OBJECTS, STYLES


@dataclass(frozen=True)
class JudgeConfig:
    """Channels at strides 2, 4, 8 and 16, and the words that each output stands for, in order."""

    widths: tuple[int, ...] = (24, 48, 96, 144)
    objects: tuple[str, ...] = OBJECTS
    colours: tuple[str, ...] = COLOURS
    backgrounds: tuple[str, ...] = BACKGROUNDS
    styles: tuple[str, ...] = STYLES
    attributes: tuple[str, ...] = ATTRIBUTES


class JudgeOutput(NamedTuple):
    """The network's outputs: logits, except `strength` and `features`.

    foreground b H W, classes b n H/4 W/4, objects b n, background, style and strength each b k, and the features
    b c H/4 W/4 that `JudgeNetwork.colours` pools.
    """

    foreground: Tensor
    classes: Tensor
    objects: Tensor
    background: Tensor
    style: Tensor
    strength: Tensor
    features: Tensor


class JudgeBlock(nn.Module):
    """x + conv(relu(norm(x))): one convolution per block, so that the blocks at high resolution are cheap."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(width // 12, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class JudgeNetwork(nn.Module):
    """The U-Net and its heads. It returns logits; `Judge` turns them into a `Verdict`."""

    def __init__(self, config: JudgeConfig):
        super().__init__()
        a, b, c, d = config.widths
        self.class_counts = [len(config.backgrounds), len(config.styles), len(config.attributes)]
        self.stem = nn.Conv2d(3 * 4, a, 3, padding=1)
        self.down = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), JudgeBlock(b), JudgeBlock(b)),
                nn.Sequential(nn.Conv2d(b, c, 3, 2, 1), JudgeBlock(c), JudgeBlock(c)),
                nn.Sequential(nn.Conv2d(c, d, 3, 2, 1), JudgeBlock(d), JudgeBlock(d), JudgeBlock(d)),
            ]
        )
        self.narrow = nn.ModuleList([nn.Conv2d(d, c, 1), nn.Conv2d(c, b, 1), nn.Conv2d(b, a, 1)])
        self.up = nn.ModuleList([JudgeBlock(c), JudgeBlock(b), JudgeBlock(a)])
        self.thing = nn.Conv2d(a, 4, 1)  # foreground: 2×2 pixels at each position
        self.kinds = nn.Conv2d(b, len(config.objects), 1)  # which object
        self.presence = nn.Linear(2, 1)
        nn.init.ones_(self.presence.weight)
        nn.init.constant_(self.presence.bias, 3.0)  # a tenth of the picture at probability 1/2 gives about even odds
        classes = sum(self.class_counts)
        self.whole = nn.Sequential(nn.Linear(a + b + c + 2 * d, 128), nn.ReLU(), nn.Linear(128, classes))
        self.paint = nn.Sequential(nn.Linear(b + 3, 96), nn.ReLU(), nn.Linear(96, len(config.colours)))

    def forward(self, x: Tensor) -> JudgeOutput:
        """x: pictures b 3 H W in [-1, 1], sides in multiples of 16."""
        y = F.relu(self.stem(F.pixel_unshuffle(x, 2)))  # no norm: the means of these features count flowers and flakes
        skips = [y]
        for level in self.down:
            skips.append(y := level(y))
        means = [F.relu(skip).mean((2, 3)) for skip in skips]
        pooled = torch.cat([*means, y.amax((2, 3))], 1)
        background, style, strength = self.whole(pooled).split(self.class_counts, 1)
        decoded = []  # features at strides 8, 4, 2
        for narrow, block, skip in zip(self.narrow, self.up, skips[-2::-1], strict=True):
            decoded.append(y := block(F.interpolate(narrow(y), scale_factor=2.0) + skip))
        foreground = F.pixel_shuffle(self.thing(F.relu(y)), 2)
        classes = self.kinds(F.relu(decoded[1]))
        objects = self.objects(F.avg_pool2d(foreground.sigmoid(), 4) * classes.softmax(1))
        features = torch.cat([decoded[1], F.avg_pool2d(x, 4)], 1)
        return JudgeOutput(foreground[:, 0], classes, objects, background, style, strength, features)

    def objects(self, cover: Tensor) -> Tensor:
        """Logits b n of each object's presence, from its soft mask `cover`, b n h w in [0, 1].

        They depend on the mask's area and on its densest 3×3 cells. With the area alone, the uncertain edge of a large
        object would outweigh a small object that is clearly visible.
        """
        area, peak = cover.mean((2, 3)), F.avg_pool2d(cover, 3, 1).amax((2, 3))
        return self.presence(torch.stack([area, peak], 2).clamp_min(1e-5).log())[..., 0]

    def colours(self, features: Tensor, cover: Tensor) -> Tensor:
        """Logits b n k of each object's colour, from the mean of the features under its soft mask b n h w in [0, 1]."""
        weights = cover.flatten(2)  # b n hw
        weights = weights / weights.sum(2, keepdim=True).clamp_min(1e-6)
        return self.paint(weights @ features.flatten(2).mT)
