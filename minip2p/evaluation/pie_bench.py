"""The cases of an editing benchmark in the layout of PIE-Bench (Ju et al. 2023): pictures, prompts and true masks.

A folder has `annotation_images/` and `mapping_file.json`, which maps names to image_path, original_prompt,
editing_prompt, blended_word and a run-length encoded mask. The cases that ship have more fields: `kept` (a mask of what
must not change), `blend` (the words of a local blend), `kind` and `expected` (what the judge has to find).

Axes: H W pixels.
"""

import io
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

from minip2p.io.files import read_json_value, shipped_weights

TEXT_FIELDS = ("image_path", "original_prompt", "editing_prompt", "blended_word")
BLEND_FIELDS = frozenset({"source", "target", "without_source", "without_target"})


def encode_runs(mask: np.ndarray) -> list[int]:
    """A mask H W bool as runs along the rows: start, length, start, length, …"""
    steps = np.diff(np.concatenate([[0], mask.ravel().astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [int(n) for pair in zip(starts, ends - starts, strict=True) for n in pair]


def decode_runs(runs: Any, size: tuple[int, int]) -> Tensor:
    """Runs as a mask H W bool. As in the published code, a run that is too long ends at the last pixel. Raises
    ValueError for anything but a list of starts and lengths."""
    if not isinstance(runs, list) or len(runs) % 2 or not all(type(n) is int and n >= 0 for n in runs):
        raise ValueError("a mask is a list of starts and lengths, which are whole numbers from 0 on")
    mask = torch.zeros(size[0] * size[1], dtype=torch.bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start : start + length] = True
    return mask.reshape(size)


@dataclass(frozen=True)
class Case:
    """One edit of a photograph. source, target: prompts. mask_runs: the mask of what may change; kept_runs: of the
    things that must not change. blend: words by field of `LocalBlend`. expected: what the judge has to find, see
    `Judge.matches`; None for a case of PIE-Bench, which has no judge."""

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
        """Everything that a benchmark reads of the case, except the pixels of its picture."""
        runs = f"{zlib.crc32(json.dumps([self.mask_runs, self.kept_runs]).encode()):08x}"
        blend, expected = json.dumps(self.blend, sort_keys=True), json.dumps(self.expected, sort_keys=True)
        texts = [self.name, self.kind, self.source, self.target, runs, blend, expected, self.picture.name]
        return " | ".join(texts)

    def area(self, runs: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Runs, which count the picture's own pixels, as a mask H W bool of another size, by the nearest pixel."""
        with Image.open(self.picture) as picture:
            mask = decode_runs(list(runs), (picture.height, picture.width))
        return F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].bool()

    def mask(self, size: tuple[int, int]) -> Tensor:
        """What may change, H W bool. A case of PIE-Bench also has a border of one pixel, as in the published code."""
        mask = self.area(self.mask_runs, size)
        if self.expected is None:
            mask[[0, -1]] = mask[:, [0, -1]] = True
        return mask


def published_picture(edited: Tensor, suffix: str) -> Tensor:
    """An edited picture, 3 H W in [-1, 1], as PIE-Bench's published code measures it: read back from its file.

    The code cuts values off to 8 bits instead of rounding them, and writes each edit under the name of its photograph.
    Those of PIE-Bench are JPEGs, so the edits are too, at Pillow's default quality of 75.

    suffix: of the photograph's name, as ".jpg". Of a format that Pillow does not write, only the 8 bits are taken.
    """
    values = ((edited / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file_format = Image.registered_extensions().get(suffix.lower())
    if file_format in Image.SAVE:
        file = io.BytesIO()
        Image.fromarray(values).save(file, file_format)
        values = np.asarray(Image.open(file).convert("RGB"))
    return torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 127.5 - 1


def read_cases(folder: Path | None = None) -> list[Case]:
    """The cases in a folder, by default those that ship. Raises FileNotFoundError or ValueError with one line."""
    folder = shipped_weights("bench") if folder is None else folder
    file = folder / "mapping_file.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a benchmark's folder has it, and annotation_images/")
    mapping = read_json_value(file)
    if not isinstance(mapping, dict) or not mapping:
        raise ValueError(f"{file}: must be an object that maps names to cases")
    return [read_case(file, name, fields) for name, fields in mapping.items()]


def read_case(file: Path, name: str, fields: Any) -> Case:
    """One case of a mapping file. Raises ValueError with one line that names the file and the case."""
    where = f"{file}: case {name!r}"
    check_case_name(where, name)
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), str) for key in TEXT_FIELDS):
        raise ValueError(f"{where} must have {', '.join(TEXT_FIELDS)} and mask")
    pictures = file.parent / "annotation_images"
    picture = pictures / fields["image_path"]
    if not picture.resolve().is_relative_to(pictures.resolve()):
        raise ValueError(f"{where}: {fields['image_path']} leads out of the folder")
    mask_runs: Any = fields.get("mask")
    kept_runs: Any = fields.get("kept", [])
    try:
        for runs in (mask_runs, kept_runs):
            decode_runs(runs, (1, 1))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    blend = fields.get("blend")
    if blend is None:
        words = fields["blended_word"].split(" ") if fields["blended_word"] else []
        blend = {"source": words[:1], "target": words[1:2]} if len(words) > 1 else {}
    if not isinstance(blend, dict) or not BLEND_FIELDS.issuperset(blend) or not all(map(are_words, blend.values())):
        raise ValueError(f"{where}: blend has lists of words under some of {', '.join(sorted(BLEND_FIELDS))}")
    return Case(
        name,
        str(fields.get("kind", fields.get("editing_type_id"))),
        picture,
        source=without_brackets(fields["original_prompt"]),
        target=without_brackets(fields["editing_prompt"]),
        mask_runs=mask_runs,
        kept_runs=kept_runs,
        blend=blend,
        expected=fields.get("expected"),
    )


def check_case_name(where: str, name: str) -> None:
    """Raises ValueError for a name of a case that cannot be a file's. where: the case, for the message."""
    if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
        raise ValueError(f"{where}: the name of a case is also the name of its files, and this cannot be one")


def without_brackets(prompt: str) -> str:
    """A prompt of PIE-Bench without the brackets that mark the edited words."""
    return prompt.replace("[", "").replace("]", "")


def are_words(value: Any) -> bool:
    """Whether a value is a list of strings."""
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
