"""The cases of an editing benchmark, in the layout of PIE-Bench (Ju et al. 2023): pictures, prompts, true masks.

A folder has `annotation_images/` and `mapping_file.json`: by name image_path, original_prompt, editing_prompt,
blended_word, and mask, run-length encoded. Ours, which ships, says more: what must not change, the words of a blend,
and what the judge has to find.

Axes: H W pixels.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.io.files import shipped_weights

BLEND_FIELDS = frozenset({"source", "target", "without_source", "without_target"})  # of a case's blend


def encode_runs(mask: np.ndarray) -> list[int]:
    """A mask H W bool as runs: where each begins, counted along the rows, and how long it is."""
    steps = np.diff(np.concatenate([[0], mask.ravel().astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [int(n) for pair in zip(starts, ends - starts, strict=True) for n in pair]


def decode_runs(runs: Any, size: tuple[int, int]) -> Tensor:
    """Runs -> the mask H W bool. A run that goes on beyond the last pixel ends there, as in the published code. Raises
    ValueError for what are no runs."""
    if not isinstance(runs, list) or len(runs) % 2 or not all(type(n) is int and n >= 0 for n in runs):
        raise ValueError("a mask is a list of starts and lengths, whole numbers from 0 on")
    mask = torch.zeros(size[0] * size[1], dtype=torch.bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start : start + length] = True
    return mask.reshape(size)


@dataclass(frozen=True)
class Case:
    """One edit of a photograph. source, target: prompts. runs: of the mask of what may change; kept: of the things that
    may not. blend: the words that a blend is told, as `Blend` takes them. expected: what the judge has to find, see
    `Judge.finds`; None where there is no judge."""

    name: str
    kind: str
    picture: Path
    source: str
    target: str
    mask_runs: Sequence[int] = field(repr=False)
    kept_runs: Sequence[int] = field(default=(), repr=False)
    blend: Mapping[str, Sequence[str]] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None

    @property
    def description(self) -> str:
        """All that a benchmark reads of the case, but for the picture's pixels."""
        runs = f"{zlib.crc32(json.dumps([self.mask_runs, self.kept_runs]).encode()):08x}"
        return " | ".join(
            [
                self.name,
                self.kind,
                self.source,
                self.target,
                runs,
                json.dumps(self.blend, sort_keys=True),
                json.dumps(self.expected, sort_keys=True),
                self.picture.name,
            ]
        )

    def area(self, runs: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Runs, which are counted in the picture's own pixels, as a mask H W of a size, by the nearest pixel."""
        with Image.open(self.picture) as picture:
            own = decode_runs(list(runs), (picture.height, picture.width))
        return F.interpolate(own[None, None].float(), size, mode="nearest-exact")[0, 0].bool()

    def mask(self, size: tuple[int, int]) -> Tensor:
        """What may change, H W bool. Without a judge it is PIE-Bench's: as published, with a border of one pixel."""
        mask = self.area(self.mask_runs, size)
        if self.expected is None:
            mask[[0, -1]] = mask[:, [0, -1]] = True
        return mask


def read_cases(folder: Path | None = None) -> list[Case]:
    """The cases of a folder, by default those that ship. Raises FileNotFoundError or ValueError with one line."""
    folder = shipped_weights("bench") if folder is None else folder
    file = folder / "mapping_file.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a benchmark's folder has it, and annotation_images/")
    try:
        mapping = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is not JSON ({error})") from None
    if not isinstance(mapping, dict) or not mapping:
        raise ValueError(f"{file}: must be an object with a case under each name")
    return [read_case(file, name, given) for name, given in mapping.items()]


def read_case(file: Path, name: str, given: Any) -> Case:
    texts = ("image_path", "original_prompt", "editing_prompt", "blended_word")
    if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
        raise ValueError(f"{file}: case {name!r}: its name is that of its files, and cannot be one")
    if not isinstance(given, dict) or not all(isinstance(given.get(key), str) for key in texts):
        raise ValueError(f"{file}: case {name!r} must have {', '.join(texts)} and mask")
    picture = file.parent / "annotation_images" / given["image_path"]
    if not picture.resolve().is_relative_to((file.parent / "annotation_images").resolve()):
        raise ValueError(f"{file}: case {name!r}: {given['image_path']} leads out of the folder")
    blend, kept = given.get("blend"), given.get("kept", [])
    try:
        decode_runs(given.get("mask"), (1, 1))
        decode_runs(kept, (1, 1))
    except ValueError as error:
        raise ValueError(f"{file}: case {name!r}: {error}") from None
    source, target = (given[key].replace("[", "").replace("]", "") for key in ("original_prompt", "editing_prompt"))
    words = given["blended_word"].split(" ") if given["blended_word"] else []
    if blend is None:
        blend = {"source": words[:1], "target": words[1:2]} if len(words) > 1 else {}
    if not isinstance(blend, dict) or not BLEND_FIELDS.issuperset(blend) or not all(map(are_words, blend.values())):
        raise ValueError(
            f"{file}: case {name!r}: blend has lists of words under some of {', '.join(sorted(BLEND_FIELDS))}"
        )
    return Case(
        name,
        str(given.get("kind", given.get("editing_type_id"))),
        picture,
        source,
        target,
        given["mask"],
        kept,
        blend,
        given.get("expected"),
    )


def are_words(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(word, str) for word in given)
