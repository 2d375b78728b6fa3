"""What the page asks for: the bodies of its requests, read and checked. Functions raise ValueError with one line."""

import base64
import binascii
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

from minip2p.inversion.methods import METHODS
from minip2p.p2p.warp import LARGEST_SCALE, SMALLEST_SCALE
from minip2p.web.fields import Fields, check, check_number, check_text
from minip2p.web.limits import Limits

MAX_SEED = 2**53 - 1  # the largest whole number that JavaScript counts to
MAX_GUIDANCE = 100.0
MAX_WEIGHT = 10.0
MAX_WORDS = 16  # of a list of words, words that have a weight, and objects
MAX_SHIFT = 10_000.0  # pixels
OBJECT_KINDS = ("move", "duplicate", "remove")  # from back to front
EDIT_FIELDS = ("run", "target", "cross", "self", "weights", "blend", "region", "objects", "paste")


@dataclass(frozen=True)
class Generation:
    """A picture from a prompt. guidance: None is the model's own."""

    prompt: str
    seed: int
    steps: int
    guidance: float | None
    negative: str

    @classmethod
    def read(cls, body: Any, limits: Limits) -> tuple["Generation", bool]:
        """Also returns whether the steps are to be shown."""
        fields = Fields(body, ("prompt", "seed", "steps", "guidance", "negative", "preview"))
        request = cls(
            fields.text("prompt", limits.characters),
            fields.integer("seed", 0, MAX_SEED, 0),
            fields.integer("steps", 1, limits.steps, min(50, limits.steps)),
            fields.optional_number("guidance", -MAX_GUIDANCE, MAX_GUIDANCE),
            fields.text("negative", limits.characters, ""),
        )
        return request, fields.flag("preview")


@dataclass(frozen=True)
class Inversion:
    """A photograph that becomes a run. The photograph is in the store. guidance: None is the model's own."""

    prompt: str
    method: str
    steps: int
    guidance: float | None

    @classmethod
    def read(cls, body: Any, limits: Limits) -> tuple["Inversion", str, bool]:
        """Also returns the id of the photograph, and whether the steps are to be shown."""
        fields = Fields(body, ("photo", "prompt", "method", "steps", "guidance", "preview"))
        method = fields.text("method", 40, "direct")
        check("method", method, method in METHODS, f"one of {', '.join(METHODS)}")
        request = cls(
            fields.text("prompt", limits.characters),
            method,
            fields.integer("steps", 1, limits.steps, min(50, limits.steps)),
            fields.optional_number("guidance", -MAX_GUIDANCE, MAX_GUIDANCE),
        )
        return request, fields.text("photo", 40), fields.flag("preview")


@dataclass(frozen=True)
class Blend:
    """A local blend by words of the source and of the target. threshold: None is the library's."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    threshold: float | None = None


@dataclass(frozen=True)
class ObjectChange:
    """What happens to an object of the source, by its word. kind: one of `OBJECT_KINDS`. x, y: its shift in pixels."""

    word: str
    kind: str = "move"
    x: float = 0
    y: float = 0
    scale: float = 1


@dataclass(frozen=True)
class Edit:
    """An edit of a run. weights: (word, weight) of words of the target. objects: from back to front.

    region: where the edit may change the picture, as a black and white image in its size. The attention is edited only
    there, and where there is no blend by words, the latents are the source's elsewhere. paste: the picture has the
    source's pixels outside of the mask.
    """

    target: str
    cross: float
    self_: float
    weights: tuple[tuple[str, float], ...] = ()
    blend: Blend | None = None
    region: Image.Image | None = field(default=None, compare=False)
    objects: tuple[ObjectChange, ...] = ()
    paste: bool = False

    @classmethod
    def read(cls, body: Any, limits: Limits, size: tuple[int, int]) -> tuple["Edit", bool, bool]:
        """Also returns whether the plain picture is wanted besides, and whether the steps are to be shown.

        size: rows and columns of the picture.
        """
        fields = Fields(body, (*EDIT_FIELDS, "compare", "preview"))
        return cls.from_fields(fields, limits, size), fields.flag("compare"), fields.flag("preview")

    @classmethod
    def from_fields(cls, fields: Fields, limits: Limits, size: tuple[int, int]) -> "Edit":
        blend = fields.value("blend", None)
        region = fields.value("region", None)
        edit = cls(
            fields.text("target", limits.characters),
            fields.number("cross", 0, 1, 0.8),
            fields.number("self", 0, 1, 0.4),
            read_weights(fields.value("weights", None), limits),
            None if blend is None else read_blend(blend, limits),
            None if region is None else read_region(region, limits, size),
            read_objects(fields.items("objects", MAX_WORDS, []), limits),
            fields.flag("paste"),
        )
        if edit.paste and edit.blend is None and edit.region is None:
            raise ValueError("paste needs a mask: name words to blend, or paint a region")
        return edit

    def with_value(self, name: str, value: float) -> "Edit":
        """The edit with another value on an axis of a grid."""
        kind, _, word = name.partition(":")
        if kind == "weight":
            return replace(self, weights=tuple({**dict(self.weights), word: value}.items()))
        if kind == "threshold":
            assert self.blend is not None
            return replace(self, blend=replace(self.blend, threshold=value))
        return replace(self, cross=value) if kind == "cross" else replace(self, self_=value)


def read_grid(body: Any, limits: Limits, size: tuple[int, int]) -> list[tuple[int, int, Edit]]:
    """The cells of a grid of edits, row by row: the column, the row and the edit of each."""
    fields = Fields(body, (*EDIT_FIELDS, "x", "y"))
    edit = Edit.from_fields(fields, limits, size)
    axes = [read_axis(name, fields.value(name), edit, limits) for name in ("x", "y")]
    (x, columns), (y, rows) = axes
    if x == y:
        raise ValueError(f"the axes of a grid differ, and both are {x!r}")
    if len(columns) * len(rows) > limits.cells:
        raise ValueError(f"a grid has at most {limits.cells} cells, not {len(columns) * len(rows)}")
    pairs = product(enumerate(rows), enumerate(columns))
    return [(i, j, edit.with_value(x, a).with_value(y, b)) for (j, b), (i, a) in pairs]


def read_axis(axis: str, value: Any, edit: Edit, limits: Limits) -> tuple[str, list[float]]:
    """The setting that an axis varies, and its values."""
    fields = Fields(value, ("name", "values"), f"the axis {axis}")
    name = fields.text("name", limits.characters)
    kind, colon, word = name.partition(":")
    if kind == "weight" and word:
        low, high = -MAX_WEIGHT, MAX_WEIGHT
    elif kind in ("cross", "self", "threshold") and not colon:
        low, high = 0.0, 1.0
    else:
        raise ValueError(f"the axis {axis} is cross, self, threshold or weight:WORD, not {name[:40]!r}")
    if kind == "threshold" and edit.blend is None:
        raise ValueError("threshold is that of a blend: name words to blend")
    values = [check_number(name, item, low, high) for item in fields.items("values", limits.cells)]
    if not values:
        raise ValueError(f"the axis {axis} has no values")
    return name, values


def read_weights(value: Any, limits: Limits) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    check(
        "weights", value, isinstance(value, dict) and len(value) <= MAX_WORDS, f"an object of at most {MAX_WORDS} words"
    )
    return tuple(
        (
            check_text("a word of weights", word, limits.characters),
            check_number(word[:40], weight, -MAX_WEIGHT, MAX_WEIGHT),
        )
        for word, weight in value.items()
    )


def read_blend(value: Any, limits: Limits) -> Blend:
    fields = Fields(value, ("source", "target", "threshold"), "blend")
    words = [
        tuple(check_text("a word of blend", word, limits.characters) for word in fields.items(name, MAX_WORDS, []))
        for name in ("source", "target")
    ]
    if not any(words):
        raise ValueError("blend needs a word of the source or of the target")
    return Blend(words[0], words[1], fields.optional_number("threshold", 0, 1))


def read_objects(items: list[Any], limits: Limits) -> tuple[ObjectChange, ...]:
    """The objects of an edit, in the order in which the library has them: what is duplicated is in front."""
    objects: list[ObjectChange] = []
    for item in items:
        fields = Fields(item, ("word", "kind", "x", "y", "scale"), "an object")
        word, kind = fields.text("word", limits.characters), fields.text("kind", 20, "move")
        check("kind", kind, kind in OBJECT_KINDS, f"one of {', '.join(OBJECT_KINDS)}")
        x, y = (fields.number(name, -MAX_SHIFT, MAX_SHIFT, 0) for name in ("x", "y"))
        scale = fields.number("scale", SMALLEST_SCALE, LARGEST_SCALE, 1)
        if kind == "remove" and (x, y, scale) != (0, 0, 1):
            raise ValueError(f"{word!r} is removed, so it takes no shift and no size")
        if word in [other.word for other in objects]:
            raise ValueError(f"{word!r} is named twice among the objects")
        objects.append(ObjectChange(word, kind, *(int(n) if n.is_integer() else n for n in (x, y, scale))))
    return tuple(sorted(objects, key=lambda each: OBJECT_KINDS.index(each.kind)))


def read_region(value: Any, limits: Limits, size: tuple[int, int]) -> Image.Image:
    """The region of an edit in the size of the picture (rows, columns); white is where it may change."""
    fields = Fields(value, ("rows", "columns", "cells"), "region")
    rows, columns = (fields.integer(name, 1, limits.region_cells) for name in ("rows", "columns"))
    if rows * columns > limits.region_cells:
        raise ValueError(f"region has at most {limits.region_cells} cells, not {rows * columns}")
    try:
        content = base64.b64decode(check_text("cells", fields.value("cells"), 2 * limits.region_cells), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"cells of region must be base64 ({error})") from None
    cells = np.frombuffer(content, np.uint8)
    if len(cells) != rows * columns or not np.isin(cells, (0, 255)).all():
        raise ValueError(f"cells of region must be {rows * columns} bytes of 0 or 255")
    if not cells.any():
        raise ValueError("the region is empty, so nothing could change: paint where the picture may change")
    return Image.fromarray(cells.reshape(rows, columns)).resize(size[::-1], Image.Resampling.NEAREST)


def read_alignment(body: Any, limits: Limits) -> tuple[str, str]:
    """The source prompt and the target prompt."""
    fields = Fields(body, ("source", "target"))
    return fields.text("source", limits.characters), fields.text("target", limits.characters)


def run_of(body: Any) -> str:
    """The id of the run that an edit or a grid is about."""
    if not isinstance(body, dict) or not isinstance(body.get("run"), str):
        raise ValueError("the request needs 'run', the id of a run")
    return str(body["run"])
