"""The judge: what a picture of the tiny world shows, and where. A measuring tool that never guides a model it judges.

One small U-Net reads a picture and answers apart where there is a thing (every pixel) and which it is (cells of 4 x 4
pixels); both together are an object's mask. What a mask covers tells whether the object is present and, from the
features inside it, its colour. Place, style and the strength of the graded attributes are read from the whole picture.
Its weights come with the package; `python -m minip2p.tiny.judge_train` trains them anew.

Axes: b batch, c channels, h height, w width, n the 30 objects, k classes.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minip2p.checkpoints.strict import load_module
from minip2p.io.files import shipped_weights, write_json
from minip2p.io.tensors import write_tensors
from minip2p.metrics.image import iou
from minip2p.tiny.scenes import ANIMALS, ATTRIBUTES, BACKGROUNDS, COLOURS, STYLES, THINGS

FOLDER = shipped_weights("judge")


OBJECTS = ANIMALS + THINGS


@dataclass(frozen=True)
class JudgeConfig:
    """Channels at strides 2, 4, 8 and 16, and the words of each list in the order of the outputs."""

    widths: tuple[int, ...] = (24, 48, 96, 144)
    objects: tuple[str, ...] = OBJECTS
    colours: tuple[str, ...] = COLOURS
    backgrounds: tuple[str, ...] = BACKGROUNDS
    styles: tuple[str, ...] = STYLES
    attributes: tuple[str, ...] = ATTRIBUTES


@dataclass(frozen=True)
class Verdict:
    """What the judge saw in b pictures. All but `strength` are probabilities.

    objects b n (each on its own), thing b H W (of any kind), kinds b n H/4 W/4 (which one, were there a thing),
    paints b n k (the colour of each object, of no meaning where it is absent or the style is sketch), background b k,
    style b k, strength b k (in [0, 1] for each graded attribute, about 0 where it is absent).
    """

    config: JudgeConfig
    objects: Tensor
    thing: Tensor
    kinds: Tensor
    paints: Tensor
    background: Tensor
    style: Tensor
    strength: Tensor

    def masks(self, word: str) -> Tensor:
        """The probability that a pixel belongs to the object: b H W. Above 0.5 is its mask."""
        kind = self.kinds[:, position(word, self.config.objects), None]
        return self.thing * F.interpolate(kind, self.thing.shape[1:], mode="bilinear")[:, 0]

    def colour(self, word: str) -> Tensor:
        """The probabilities of the object's colours: b k, in the order of config.colours."""
        return self.paints[:, position(word, self.config.objects)]

    def present(self, count: int) -> list[set[str]]:
        """The `count` likeliest objects of each picture."""
        return [{self.config.objects[i] for i in row} for row in self.objects.topk(count).indices.tolist()]

    def seen(self) -> list[set[str]]:
        """All objects of each picture that are likelier there than not."""
        return [{self.config.objects[i] for i in row.nonzero()[:, 0].tolist()} for row in self.objects > 0.5]

    def named(self) -> list[dict[str, str]]:
        """The likeliest background and style of each picture, as words."""
        places, styles = self.background.argmax(1).tolist(), self.style.argmax(1).tolist()
        return [
            {"background": self.config.backgrounds[p], "style": self.config.styles[s]}
            for p, s in zip(places, styles, strict=True)
        ]


def position(word: str, words: tuple[str, ...]) -> int:
    """Where a word stands in a list; ValueError that shows the list if it does not."""
    if word not in words:
        raise ValueError(f"the judge knows no {word!r}, only {', '.join(words)}")
    return words.index(word)


class JudgeBlock(nn.Module):
    """x + conv(relu(norm(x))): one convolution, so that the many at high resolution stay cheap."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(width // 12, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class Reading(NamedTuple):
    """The network's logits: thing b H W, kinds b n H/4 W/4, objects b n, background, style and strength b k each;
    and the features b c H/4 W/4 that `Network.colours` pools."""

    thing: Tensor
    kinds: Tensor
    objects: Tensor
    background: Tensor
    style: Tensor
    strength: Tensor
    features: Tensor


class Network(nn.Module):
    """The U-Net with its heads. Reads logits; `Judge` makes a verdict of them."""

    def __init__(self, config: JudgeConfig):
        super().__init__()
        a, b, c, d = config.widths
        self.sizes = [len(config.backgrounds), len(config.styles), len(config.attributes)]
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
        self.thing = nn.Conv2d(a, 4, 1)  # 2 x 2 pixels at each site
        self.kinds = nn.Conv2d(b, len(config.objects), 1)
        self.presence = nn.Linear(2, 1)
        nn.init.ones_(self.presence.weight)
        nn.init.constant_(self.presence.bias, 3.0)  # a tenth of the picture, half sure, is about even
        self.whole = nn.Sequential(nn.Linear(a + b + c + 2 * d, 128), nn.ReLU(), nn.Linear(128, sum(self.sizes)))
        self.paint = nn.Sequential(nn.Linear(b + 3, 96), nn.ReLU(), nn.Linear(96, len(config.colours)))

    def forward(self, x: Tensor) -> Reading:
        """x b 3 H W in [-1, 1], sides in multiples of 16."""
        y = F.relu(self.stem(F.pixel_unshuffle(x, 2)))  # no norm here: means over it count flowers and flakes
        skips = [y]
        for level in self.down:
            skips.append(y := level(y))
        means = [F.relu(s).mean((2, 3)) for s in skips]
        background, style, strength = self.whole(torch.cat([*means, y.amax((2, 3))], 1)).split(self.sizes, 1)
        rising = []  # at strides 8, 4, 2
        for narrow, block, skip in zip(self.narrow, self.up, skips[-2::-1], strict=True):
            rising.append(y := block(F.interpolate(narrow(y), scale_factor=2.0) + skip))
        thing = F.pixel_shuffle(self.thing(F.relu(y)), 2)
        kinds = self.kinds(F.relu(rising[1]))
        objects = self.objects(F.avg_pool2d(thing.sigmoid(), 4) * kinds.softmax(1))
        features = torch.cat([rising[1], F.avg_pool2d(x, 4)], 1)
        return Reading(thing[:, 0], kinds, objects, background, style, strength, features)

    def objects(self, cover: Tensor) -> Tensor:
        """Logits b n of each object's presence, from its cover b n h w in [0, 1]: from its area, and from its densest
        3 x 3 cells, since a small object has as much of a right to be seen as a large one's doubtful edge."""
        area, peak = cover.mean((2, 3)), F.avg_pool2d(cover, 3, 1).amax((2, 3))
        return self.presence(torch.stack([area, peak], 2).clamp_min(1e-5).log())[..., 0]

    def colours(self, features: Tensor, cover: Tensor) -> Tensor:
        """Logits b n k of each object's colour: from the mean of the features under its cover b n h w in [0, 1]."""
        weights = cover.flatten(2)  # b n hw
        weights = weights / weights.sum(2, keepdim=True).clamp_min(1e-6)
        return self.paint(weights @ features.flatten(2).mT)


def pad_picture(picture: Tensor) -> Tensor:
    """A picture 3 H W whose last row and column are repeated until its sides are multiples of 16."""
    return F.pad(picture[None], (0, -picture.shape[2] % 16, 0, -picture.shape[1] % 16), mode="replicate")[0]


class Judge:
    """The network and its words. `judge(pictures)` gives a Verdict; the same pictures give the same one."""

    def __init__(self, network: Network, config: JudgeConfig):
        self.network, self.config = network.eval(), config

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Verdict:
        """pictures b 3 H W in [-1, 1], as rendered or decoded at 128 x 128. ValueError for another shape."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % 16 or pictures.shape[3] % 16:
            raise ValueError(f"the judge reads b 3 H W, sides in multiples of 16, not {tuple(pictures.shape)}")
        read = self.network(pictures.float())
        thing, kinds = read.thing.sigmoid(), read.kinds.softmax(1)
        paints = self.network.colours(read.features, F.avg_pool2d(thing[:, None], 4) * kinds).softmax(2)
        return Verdict(
            self.config,
            read.objects.sigmoid(),
            thing,
            kinds,
            paints,
            read.background.softmax(1),
            read.style.softmax(1),
            read.strength.clamp(0, 1),
        )

    def finds(self, picture: Tensor, expected: Mapping[str, Any]) -> bool:
        """Whether a picture 3 H W shows what it should (`Case.expected`): the objects are the likeliest, and none that
        is gone is likelier there than not; the colours, background and style that are asked for are there."""
        verdict = self(pad_picture(picture)[None])
        right = verdict.present(len(expected["objects"]))[0] == set(expected["objects"])
        right &= not verdict.seen()[0] & set(expected["gone"])
        right &= all(
            self.config.colours[int(verdict.colour(name)[0].argmax())] == colour
            for name, colour in expected.get("colours", {}).items()
        )
        return right and all(
            verdict.named()[0][name] == expected[name] for name in ("background", "style") if name in expected
        )

    @torch.no_grad()
    def features(self, picture: Tensor) -> Tensor:
        """What it sees in each cell of 8 x 8 pixels of a picture 3 H W: n c."""
        return F.avg_pool2d(self.network(pad_picture(picture)[None]).features, 2)[0].flatten(1).mT

    def score(self, before: Tensor, after: Tensor, source: str, target: str, mask: Tensor | None) -> dict[str, float]:
        """For a sweep: whether the objects that the target names are those that are there (`success`, 1 or 0), and the
        IoU of the mask with the objects that the source has and the target has not. NaN where none is named."""
        before, after = (pad_picture(picture) for picture in (before, after))
        old, new = (
            [name for name in self.config.objects if name in re.findall(r"\w+", prompt)] for prompt in (source, target)
        )
        gone = [name for name in old if name not in new]
        found = {"success": math.nan, "mask_iou": math.nan}
        if new:
            found["success"] = float(self(after[None]).present(len(new))[0] == set(new))
        if gone and mask is not None:
            verdict = self(before[None])
            truth = torch.stack([verdict.masks(name)[0] > 0.5 for name in gone]).any(0)
            found["mask_iou"] = iou(mask, truth[: mask.shape[0], : mask.shape[1]])
        return found

    def save(self, folder: str | Path) -> None:
        """Writes config.json and judge.safetensors (float16), each whole or not at all."""
        path = Path(folder)
        write_tensors({name: t.half() for name, t in self.network.state_dict().items()}, path / "judge.safetensors")
        write_json(path / "config.json", asdict(self.config))

    @classmethod
    def load(cls, folder: str | Path | None = None) -> "Judge":
        """The judge of a folder, by default the one that ships. ValueError where a file, a key or a shape is wrong."""
        path = Path(folder or FOLDER)
        for file in ("config.json", "judge.safetensors"):
            if not (path / file).is_file():
                raise ValueError(f"no {file} in {path}: train the judge with python -m minip2p.tiny.judge_train")
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if odd := sorted(values.keys() ^ {field.name for field in fields(JudgeConfig)}):
            raise ValueError(f"{path / 'config.json'}: missing or unknown: {', '.join(odd)}")
        config = JudgeConfig(**{name: tuple(value) for name, value in values.items()})
        return cls(load_module(lambda: Network(config), path / "judge.safetensors", dtype=torch.float32), config)
