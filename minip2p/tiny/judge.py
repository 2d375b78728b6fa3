"""The judge: reads what a picture of the tiny world shows. It measures; it never guides a model that it judges.

Its weights come with the package. `python -m minip2p.tiny.judge_train` trains new ones. For the network see
`minip2p.tiny.judge_network`.

Axes: b batch, H W height and width of a picture, n objects, k classes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.checkpoints.strict import load_module
from minip2p.io.files import read_json, shipped_weights, write_json
from minip2p.io.tensors import write_tensors
from minip2p.metrics.image import iou
from minip2p.tiny.judge_network import JudgeConfig, JudgeNetwork

FOLDER = shipped_weights("judge")


@dataclass(frozen=True)
class Verdict:
    """What the judge reads in b pictures: probabilities, except `strength`.

    objects: b n, whether each is present. foreground: b H W, whether a pixel belongs to any object. classes:
    b n H/4 W/4, which object a cell shows, given that it shows one. colours: b n k, each object's colour; meaningless
    if the object is absent or the style is sketch. background: b k. style: b k. strength: b k, of each graded
    attribute, in [0, 1] and about 0 where the attribute is absent.
    """

    config: JudgeConfig
    objects: Tensor
    foreground: Tensor
    classes: Tensor
    colours: Tensor
    background: Tensor
    style: Tensor
    strength: Tensor

    def masks(self, word: str) -> Tensor:
        """The probability that a pixel belongs to the object, b H W. Its mask is where this exceeds 0.5."""
        of_object = self.classes[:, word_index(word, self.config.objects), None]
        return self.foreground * F.interpolate(of_object, self.foreground.shape[1:], mode="bilinear")[:, 0]

    def colour(self, word: str) -> Tensor:
        """The probabilities of the object's colours, b k, in the order of config.colours."""
        return self.colours[:, word_index(word, self.config.objects)]

    def likeliest_objects(self, count: int) -> list[set[str]]:
        """The `count` most probable objects of each picture."""
        return [{self.config.objects[i] for i in row} for row in self.objects.topk(count).indices.tolist()]

    def detected_objects(self) -> list[set[str]]:
        """All objects of each picture whose probability exceeds 0.5."""
        return [{self.config.objects[i] for i in row.nonzero()[:, 0].tolist()} for row in self.objects > 0.5]

    def background_and_style(self) -> list[dict[str, str]]:
        """The most probable background and style of each picture, in words."""
        backgrounds, styles = self.background.argmax(1).tolist(), self.style.argmax(1).tolist()
        return [
            {"background": self.config.backgrounds[b], "style": self.config.styles[s]}
            for b, s in zip(backgrounds, styles, strict=True)
        ]


def word_index(word: str, words: tuple[str, ...]) -> int:
    """The position of a word in a list. Raises ValueError, which shows the list, if it is not there."""
    if word not in words:
        raise ValueError(f"the judge knows no {word!r}, only {', '.join(words)}")
    return words.index(word)


def pad_picture(picture: Tensor) -> Tensor:
    """A picture 3 H W, padded at the right and below to multiples of 16 by repeating its last column and row."""
    return F.pad(picture[None], (0, -picture.shape[2] % 16, 0, -picture.shape[1] % 16), mode="replicate")[0]


class Judge:
    """The network with its words. `judge(pictures)` returns a `Verdict`."""

    def __init__(self, network: JudgeNetwork, config: JudgeConfig):
        self.network = network.eval()
        self.config = config

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Verdict:
        """pictures: b 3 H W in [-1, 1], rendered or decoded at 128×128. Raises ValueError for any other shape."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % 16 or pictures.shape[3] % 16:
            raise ValueError(f"the judge reads b 3 H W, sides in multiples of 16, not {tuple(pictures.shape)}")
        out = self.network(pictures.float())
        foreground, classes = out.foreground.sigmoid(), out.classes.softmax(1)
        colours = self.network.colours(out.features, F.avg_pool2d(foreground[:, None], 4) * classes).softmax(2)
        return Verdict(
            self.config,
            objects=out.objects.sigmoid(),
            foreground=foreground,
            classes=classes,
            colours=colours,
            background=out.background.softmax(1),
            style=out.style.softmax(1),
            strength=out.strength.clamp(0, 1),
        )

    def matches(self, picture: Tensor, expected: Mapping[str, Any]) -> bool:
        """Whether a picture 3 H W shows what a case expects (`minip2p.evaluation.pie_bench.Case.expected`).

        The expected objects must be the likeliest ones, no object that should be gone may be detected, and the colours,
        background and style that `expected` names must be those that the judge reads.
        """
        verdict = self(pad_picture(picture)[None])
        if verdict.likeliest_objects(len(expected["objects"]))[0] != set(expected["objects"]):
            return False
        if verdict.detected_objects()[0] & set(expected["gone"]):
            return False
        for name, colour in expected.get("colours", {}).items():
            if self.config.colours[int(verdict.colour(name)[0].argmax())] != colour:
                return False
        read = verdict.background_and_style()[0]
        return all(read[name] == expected[name] for name in ("background", "style") if name in expected)

    @torch.no_grad()
    def features(self, picture: Tensor) -> Tensor:
        """The network's features in each cell of 8×8 pixels of a picture 3 H W: cells c."""
        return F.avg_pool2d(self.network(pad_picture(picture)[None]).features, 2)[0].flatten(1).mT

    def score(self, before: Tensor, after: Tensor, source: str, target: str, mask: Tensor | None) -> dict[str, float]:
        """The scores of an edit for a sweep. before, after: pictures 3 H W. source, target: prompts. mask: H W.

        success: 1 if the objects that the target names are the likeliest in `after`, else 0. mask_iou: IoU of `mask`
        with the objects that the source names and the target does not. NaN if there is nothing to compare.
        """
        before, after = pad_picture(before), pad_picture(after)
        old, new = (
            [name for name in self.config.objects if name in re.findall(r"\w+", prompt)] for prompt in (source, target)
        )
        removed = [name for name in old if name not in new]
        scores = {"success": math.nan, "mask_iou": math.nan}
        if new:
            scores["success"] = float(self(after[None]).likeliest_objects(len(new))[0] == set(new))
        if removed and mask is not None:
            verdict = self(before[None])
            truth = torch.stack([verdict.masks(name)[0] > 0.5 for name in removed]).any(0)
            scores["mask_iou"] = iou(mask, truth[: mask.shape[0], : mask.shape[1]])
        return scores

    def save(self, folder: str | Path) -> None:
        """Writes config.json and judge.safetensors (float16). Each file is written completely or not at all."""
        path = Path(folder)
        write_tensors({name: t.half() for name, t in self.network.state_dict().items()}, path / "judge.safetensors")
        write_json(path / "config.json", asdict(self.config))

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Self:
        """The judge from a folder; by default the one that ships. Raises ValueError for a wrong file, key or shape."""
        path = Path(folder or FOLDER)
        for file in ("config.json", "judge.safetensors"):
            if not (path / file).is_file():
                raise ValueError(f"no {file} in {path}: train the judge with python -m minip2p.tiny.judge_train")
        values = read_json(path / "config.json")
        if odd := sorted(values.keys() ^ {field.name for field in fields(JudgeConfig)}):
            raise ValueError(f"{path / 'config.json'}: missing or unknown: {', '.join(odd)}")
        config = JudgeConfig(**{name: tuple(value) for name, value in values.items()})
        network = load_module(lambda: JudgeNetwork(config), path / "judge.safetensors", dtype=torch.float32)
        return cls(network, config)
