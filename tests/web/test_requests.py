"""The bodies of the page's requests."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from minip2p.web.limits import Limits
from minip2p.web.requests import Blend, Edit, Generation, Inversion, ObjectChange, read_alignment, read_grid, run_of

LIMITS, SIZE = Limits(), (16, 16)
EDIT = {"run": "x", "target": "a tiger"}


def region(rows=2, columns=2, cells=b"\xff\0\0\0"):
    return {"rows": rows, "columns": columns, "cells": base64.b64encode(cells).decode()}


def test_generation_and_its_defaults():
    request, preview = Generation.read({"prompt": "a cat"}, LIMITS)
    assert request == Generation("a cat", 0, 50, None, "") and not preview
    full = {"prompt": "a cat", "seed": 3, "steps": 7, "guidance": 2, "negative": "blur", "preview": True}
    assert Generation.read(full, LIMITS) == (Generation("a cat", 3, 7, 2.0, "blur"), True)
    assert Generation.read({"prompt": "a cat"}, replace(LIMITS, steps=20))[0].steps == 20


@pytest.mark.parametrize(
    "body, message",
    [
        ({}, "the request needs 'prompt'"),
        ({"prompt": "x" * 1001}, "prompt has 1001 characters, and 1000 are the most"),
        ({"prompt": "a cat", "steps": 101}, "steps must be a whole number from 1 to 100, not 101"),
        ({"prompt": "a cat", "seed": -1}, "seed must be a whole number"),
        ({"prompt": "a cat", "guidance": 101}, "guidance must be a number"),
        ({"prompt": "a cat", "model": "/etc/passwd"}, "the request has no 'model'"),
        ({"prompt": "a cat", "size": [4096, 4096]}, "the request has no 'size'"),
    ],
)
def test_a_generation_beyond_the_limits_is_refused(body, message):
    with pytest.raises(ValueError, match=message):
        Generation.read(body, LIMITS)


def test_inversion():
    request, photo, preview = Inversion.read({"photo": "p", "prompt": "a cat", "preview": True}, LIMITS)
    assert request == Inversion("a cat", "direct", 50, None) and photo == "p" and preview
    with pytest.raises(ValueError, match="method must be one of ddim, .*, not 'rm -rf'"):
        Inversion.read({"photo": "p", "prompt": "a cat", "method": "rm -rf"}, LIMITS)


def test_edit():
    edit, compare, preview = Edit.read(EDIT, LIMITS, SIZE)
    assert edit == Edit("a tiger", 0.8, 0.4) and not compare and not preview
    body = {**EDIT, "cross": 1, "self": 0, "weights": {"tiger": -2}, "compare": True}
    body |= {"blend": {"source": ["cat"], "target": ["tiger"], "threshold": 0.5}, "paste": True, "preview": True}
    edit, compare, preview = Edit.read(body, LIMITS, SIZE)
    blend = Blend(("cat",), ("tiger",), 0.5)
    assert edit == Edit("a tiger", 1.0, 0.0, (("tiger", -2.0),), blend, paste=True)
    assert compare and preview


def test_objects_are_ordered_as_the_library_has_them():
    """From back to front: what is moved, what is duplicated, each in the order of the request."""
    objects = [
        {"word": "sun", "kind": "remove"},
        {"word": "cat", "kind": "duplicate", "x": 8},
        {"word": "house", "x": 4.5, "y": -2, "scale": 2},
        {"word": "grass"},
    ]
    edit, *_ = Edit.read({**EDIT, "objects": objects}, LIMITS, SIZE)
    assert edit.objects == (
        ObjectChange("house", "move", 4.5, -2, 2),
        ObjectChange("grass"),
        ObjectChange("cat", "duplicate", 8),
        ObjectChange("sun", "remove"),
    )
    assert repr(edit.objects[0].y) == "-2"  # as a person writes it


def test_a_region_is_enlarged_to_the_picture():
    edit, *_ = Edit.read({**EDIT, "region": region(), "paste": True}, LIMITS, SIZE)
    pixels = np.asarray(edit.region)
    assert pixels.shape == SIZE and (pixels[:8, :8] == 255).all() and pixels.sum() == 255 * 64


@pytest.mark.parametrize(
    "more, message",
    [
        ({"cross": 1.1}, "cross must be a number from 0 to 1"),
        ({"weights": {"tiger": 11}}, "tiger must be a number from -10 to 10"),
        ({"weights": [1]}, "weights must be an object of at most 16 words"),
        ({"weights": {f"w{n}": 1 for n in range(17)}}, "weights must be an object of at most 16 words"),
        ({"blend": {"source": [], "target": []}}, "blend needs a word"),
        ({"blend": {"source": [3]}}, "a word of blend must be text"),
        ({"blend": {"source": ["cat"], "threshold": 2}}, "threshold must be a number from 0 to 1"),
        ({"blend": {"words": ["cat"]}}, "blend has no 'words'"),
        ({"objects": {}}, "objects must be a list of at most 16 values"),
        ({"objects": [{"word": f"w{n}"} for n in range(17)]}, "objects must be a list of at most 16 values"),
        ({"objects": ["cat"]}, "an object must be a JSON object"),
        ({"objects": [{"x": 1}]}, "an object needs 'word'"),
        ({"objects": [{"word": "cat", "mask": 1}]}, "an object has no 'mask'"),
        ({"objects": [{"word": "cat", "kind": "eat"}]}, "kind must be one of move, duplicate, remove, not 'eat'"),
        ({"objects": [{"word": "cat", "x": float("nan")}]}, "x must be a number from -10000 to 10000"),
        ({"objects": [{"word": "cat", "y": 1e9}]}, "y must be a number from -10000 to 10000"),
        ({"objects": [{"word": "cat", "scale": 0}]}, "scale must be a number from 0.1 to 10"),
        ({"objects": [{"word": "cat"}, {"word": "cat", "kind": "remove"}]}, "'cat' is named twice"),
        ({"objects": [{"word": "cat", "kind": "remove", "x": 8}]}, "'cat' is removed, so it takes no shift"),
        ({"paste": True}, "paste needs a mask"),
        ({"region": region(rows=10**6)}, "rows must be a whole number from 1 to 262144"),
        ({"region": region(600, 600)}, "region has at most 262144 cells, not 360000"),
        ({"region": region(cells=b"\xff")}, "cells of region must be 4 bytes of 0 or 255"),
        ({"region": region(cells=b"\x01\0\0\0")}, "cells of region must be 4 bytes of 0 or 255"),
        ({"region": region(cells=bytes(4))}, "the region is empty"),
        ({"region": {"rows": 2, "columns": 2, "cells": "!"}}, "cells of region must be base64"),
        ({"region": {"rows": 2, "columns": 2, "cells": "x" * 600_000}}, "cells has 600000 characters"),
        ({"threads": 3}, "the request has no 'threads'"),
    ],
)
def test_an_edit_beyond_the_limits_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        Edit.read({**EDIT, **more}, LIMITS, SIZE)


def test_a_grid_has_a_cell_for_each_pair_of_values():
    x, y = {"name": "cross", "values": [0, 1]}, {"name": "weight:tiger", "values": [0.5, 2, 3]}
    cells = read_grid({**EDIT, "weights": {"tiger": 9, "a": 2}, "x": x, "y": y}, LIMITS, SIZE)
    assert [(x, y) for x, y, _ in cells] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    edits = [edit for _, _, edit in cells]
    assert [edit.cross for edit in edits] == [0, 1] * 3 and {edit.self_ for edit in edits} == {0.4}
    assert [dict(edit.weights)["tiger"] for edit in edits] == [0.5, 0.5, 2, 2, 3, 3]
    assert {dict(edit.weights)["a"] for edit in edits} == {2}
    blend = {"blend": {"source": ["cat"]}}
    axes = {"x": {"name": "threshold", "values": [0.2, 0.6]}, "y": {"name": "self", "values": [0.1]}}
    cells = read_grid({**EDIT, **blend, **axes}, LIMITS, SIZE)
    assert [(edit.blend.threshold, edit.self_) for _, _, edit in cells] == [(0.2, 0.1), (0.6, 0.1)]


@pytest.mark.parametrize(
    "x, y, message",
    [
        (("cross", [0, 1]), ("cross", [0, 1]), "the axes of a grid differ"),
        (("cross", [0] * 7), ("self", [0] * 6), "a grid has at most 36 cells, not 42"),
        (("cross", [0] * 37), ("self", [0]), "values must be a list of at most 36 values"),
        (("cross", []), ("self", [0]), "the axis x has no values"),
        (("cross", [2]), ("self", [0]), "cross must be a number from 0 to 1"),
        (("threshold", [0.2]), ("self", [0]), "threshold is that of a blend"),
        (("seed", [1]), ("self", [0]), "the axis x is cross, self, threshold or weight:WORD, not 'seed'"),
        (("weight:", [1]), ("self", [0]), "the axis x is cross, self, threshold or weight:WORD"),
    ],
)
def test_a_grid_beyond_the_limits_is_refused(x, y, message):
    axes = {axis: {"name": name, "values": values} for axis, (name, values) in (("x", x), ("y", y))}
    with pytest.raises(ValueError, match=message):
        read_grid({**EDIT, **axes}, LIMITS, SIZE)


def test_the_run_and_the_prompts_of_an_alignment_are_text():
    assert run_of({"run": "x"}) == "x"
    for body in ({}, [], {"run": 3}, None):
        with pytest.raises(ValueError, match="the request needs 'run', the id of a run"):
            run_of(body)
    assert read_alignment({"source": "a", "target": "b"}, LIMITS) == ("a", "b")
