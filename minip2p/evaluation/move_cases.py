"""The cases of `minip2p bench-moves`: pictures before and after an object was moved, and the edit that leads there.

A folder has `pictures/`, with both pictures of a case side by side, and `cases.json`, which maps names to the fields of
`MoveCase`. `minip2p.evaluation.make_move_cases` makes them.

Axes: H W pixels.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from minip2p.evaluation.pie_bench import are_words, check_case_name, decode_runs
from minip2p.io.files import read_json_value, shipped_weights
from minip2p.io.images import fit_image, read_image
from minip2p.p2p.warp import Move

TEXT_FIELDS = ("kind", "prompt", "prompt_after", "word")


@dataclass(frozen=True)
class MoveCase:
    """One object that is moved, resized, duplicated or removed.

    picture: the file with the pictures before and after. prompt: of the source; prompt_after: what the picture after
    shows, where that differs. word: the object's. by: (x, y) in pixels, and scale: as `Move` takes them; None for an
    object that is removed. objects: the words of all objects, from back to front in the picture after. old_runs,
    new_runs: where the object is visible in the pictures before and after, see `pie_bench.encode_runs`.
    """

    name: str
    kind: str
    picture: Path
    prompt: str
    prompt_after: str
    word: str
    by: tuple[int, int] | None
    scale: float | None
    objects: Sequence[str]
    old_runs: Sequence[int] = field(repr=False)
    new_runs: Sequence[int] = field(repr=False)

    @property
    def description(self) -> str:
        """Everything that a benchmark reads of the case, except the pixels of its pictures."""
        runs = f"{zlib.crc32(json.dumps([self.old_runs, self.new_runs]).encode()):08x}"
        parts = [self.name, self.kind, self.prompt, self.prompt_after, self.word, self.by, self.scale, self.objects]
        return " | ".join(map(str, [*parts, runs, self.picture.name]))

    @cached_property
    def pictures(self) -> tuple[Tensor, Tensor]:
        """The pictures before and after, 3 H W in [-1, 1] each."""
        image = read_image(self.picture)
        before, after = fit_image(image, (image.height, image.width), "stretch").chunk(2, dim=2)
        return before, after

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Where the object is visible before and after, H W bool each. One that is duplicated: where its copy is."""
        size = self.pictures[0].shape[1], self.pictures[0].shape[2]
        return decode_runs(list(self.old_runs), size), decode_runs(list(self.new_runs), size)

    def edit_options(self, mask: Tensor | None = None) -> dict[str, Any]:
        """The options of `Pipeline.edit`. mask: the object's place, instead of its word's.

        The other objects are named as well, so that they do not grow into the hole and the right one is in front.
        """
        if self.kind == "remove":
            others = {name: (0, 0) for name in self.objects if name != self.word}
            return {"move": others, "remove": {self.word: Move(mask=mask)}}
        assert self.by is not None and self.scale is not None
        change = Move(by=self.by, scale=self.scale, mask=mask)
        if self.kind == "duplicate":
            return {"duplicate": {self.word: change}}
        return {"move": {name: change if name == self.word else (0, 0) for name in self.objects}}


def read_move_cases(folder: Path | None = None) -> list[MoveCase]:
    """The cases in a folder, by default those that ship. Raises FileNotFoundError or ValueError with one line."""
    folder = shipped_weights("bench-moves") if folder is None else folder
    file = folder / "cases.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; make cases with python -m minip2p.evaluation.make_move_cases")
    values = read_json_value(file)
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{file}: must be an object that maps names to cases")
    return [read_move_case(folder, name, fields) for name, fields in values.items()]


def read_move_case(folder: Path, name: str, fields: Any) -> MoveCase:
    """One case of a file that `make_move_cases` wrote. Raises ValueError with one line that names the file and case."""
    where = f"{folder / 'cases.json'}: case {name!r}"
    check_case_name(where, name)
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), str) for key in TEXT_FIELDS):
        raise ValueError(f"{where} must have {', '.join(TEXT_FIELDS)}, objects, old_place and new_place")
    objects: Any = fields.get("objects")
    is_removed = fields["kind"] == "remove"
    by: Any = None if is_removed else fields.get("by")
    scale: Any = None if is_removed else fields.get("scale")
    if not are_words(objects) or fields["word"] not in objects:
        raise ValueError(f"{where}: objects must be a list of words, among them {fields['word']!r}")
    try:
        for key in ("old_place", "new_place"):
            decode_runs(fields.get(key), (1, 1))
        if not is_removed:
            Move(by=by, scale=scale)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return MoveCase(
        name,
        fields["kind"],
        folder / "pictures" / f"{name}.png",
        prompt=fields["prompt"],
        prompt_after=fields["prompt_after"],
        word=fields["word"],
        by=None if by is None else (by[0], by[1]),
        scale=scale,
        objects=objects,
        old_runs=fields["old_place"],
        new_runs=fields["new_place"],
    )
