"""`EditOptions`: its defaults, one clear line for each bad value, and the same fields as `Pipeline.edit`."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from minip2p import AttentionStore, LocalBlend, Move, Pipeline
from minip2p.attention.contract import explicit, fused
from minip2p.p2p.options import EditOptions


def test_the_defaults_are_the_documented_ones():
    """0.8 and 0.4 of the steps, and 32² queries: the published code's values for edits at 512 pixels."""
    assert dataclasses.asdict(EditOptions()) == {
        "cross_replace": 0.8,
        "self_replace": 0.4,
        "self_max_queries": 1024,
        "kind": "auto",
        "reweight": None,
        "local_blend": None,
        "sites": None,
        "region": None,
        "move": None,
        "resize": None,
        "duplicate": None,
        "remove": None,
        "explicit": False,
        "parity": False,
        "attend": None,
    }


def test_pipeline_edit_has_exactly_these_fields_and_defaults():
    parameters = list(inspect.signature(Pipeline.edit).parameters.values())
    assert [p.name for p in parameters[:3]] == ["self", "source", "target"]
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD  # the settings of `generate`
    options = [p for p in parameters[3:-1] if p.name != "on_step"]  # a function that watches, as for `generate`
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in options)
    fields = [(field.name, field.default) for field in dataclasses.fields(EditOptions)]
    assert [(p.name, p.default) for p in options] == fields


def objects(**options):
    return [(o.kind, o.word, tuple(o.move.by), o.move.scale) for o in EditOptions(**options).objects]


def test_objects_are_in_the_order_in_which_they_are_written():
    """Those of move, those that are only resized, those of duplicate; a resized word keeps its shift."""
    assert objects(
        remove="car", duplicate={"dog": (1, 2)}, resize={"cat": 2, "hat": 0.5}, move={"cow": (3, 4), "cat": (5, 6)}
    ) == [
        ("move", "cow", (3, 4), 1.0),
        ("move", "cat", (5, 6), 2),
        ("move", "hat", (0, 0), 0.5),
        ("duplicate", "dog", (1, 2), 1.0),
        ("remove", "car", (0, 0), 1.0),
    ]
    assert objects(duplicate={"dog": (1, 2)}, resize={"dog": 2}) == [("duplicate", "dog", (1, 2), 2)]
    mask = np.eye(3)
    for options in ({"move": {"cat": Move((1, 0), mask=mask)}}, {"remove": {"cat": Move(mask=mask)}}):
        assert torch.equal(EditOptions(**options).objects[0].move.mask, torch.eye(3))
    assert objects() == objects(move={}, remove=[]) == []


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EditOptions().cross_replace = 0.5


def test_a_local_blend_and_a_region_are_read_once():
    options = EditOptions(local_blend=("cat", "dog"), region=np.eye(3, dtype=bool))
    assert options.local_blend == LocalBlend(("cat",), ("dog",))
    assert torch.equal(options.region, torch.eye(3))
    assert dataclasses.replace(options, cross_replace=0.5).local_blend is options.local_blend


@pytest.mark.parametrize(
    "options",
    [
        {"cross_replace": 0, "self_replace": 1},
        {"cross_replace": (0.1, 0.5), "self_replace": (0.0, 0.2, 0.4)},
        {"cross_replace": {"default_": 1.0, "cat": (0.2, 0.6)}},
        {"cross_replace": np.float64(0.5), "self_max_queries": np.int64(64)},
        {"reweight": {}},
        {"reweight": {"fog": -2}},
        {"self_max_queries": 0},
        {"attend": fused},
        {"attend": explicit(AttentionStore())},
    ],
)
def test_options_that_are_taken(options):
    taken = EditOptions(**options)
    assert all(getattr(taken, name) == value for name, value in options.items())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cross_replace": 1.5}, "the steps of cross_replace are shares 0 <= start <= end <= 1 of a run, not 1.5"),
        ({"cross_replace": (0.1, 0.3, 0.2)}, "cross_replace are shares 0 <= start <= end <= 1"),
        ({"cross_replace": {"red": float("nan")}}, "cross_replace are shares 0 <= start <= end <= 1 of a run, not nan"),
        ({"cross_replace": "all"}, "not 'all'"),
        ({"cross_replace": None}, "cross_replace are shares 0 <= start <= end <= 1 of a run, not None"),
        ({"self_replace": (0.5, 0.2)}, "the steps of self_replace are shares 0 <= start <= end <= 1"),
        ({"self_replace": float("inf")}, "self_replace are shares 0 <= start <= end <= 1"),
        ({"self_replace": {"red": 0.5}}, "self_replace are shares 0 <= start <= end <= 1 of a run, not {'red': 0.5}"),
        ({"self_max_queries": -1}, "self_max_queries must be a whole number from 0 on, not -1"),
        ({"self_max_queries": 0.5}, "self_max_queries must be a whole number from 0 on, not 0.5"),
        ({"self_max_queries": 2**63}, "self_max_queries must be a whole number"),
        ({"kind": "replace"}, "kind must be auto, swap or refine, not 'replace'"),
        ({"kind": ["swap"]}, "kind must be auto, swap or refine, not ['swap']"),
        ({"reweight": 2.0}, "reweight takes weights by word, as {'fog': 2.0}, not 2.0"),
        ({"reweight": {"fog": float("inf")}}, "the weight of 'fog' is inf, which is not a finite number"),
        ({"reweight": {"fog": float("nan")}}, "the weight of 'fog' is nan"),
        ({"reweight": {"fog": "2"}}, "the weight of 'fog' is 2, which is not a finite number"),
        (
            {"local_blend": ("cat",)},
            "local_blend is a word, a (source word, target word) or a LocalBlend, not ('cat',)",
        ),
        ({"local_blend": 3}, "local_blend is a word, a (source word, target word) or a LocalBlend, not 3"),
        ({"sites": ("down",)}, "sites must be a SiteFilter, not ('down',)"),
        ({"region": "mask.png"}, "a mask is an image, an array or a tensor, not str"),
        ({"region": torch.full((4, 4), 2.0)}, "lies between 0 and 1, but its maximum is 2"),
        ({"region": torch.ones(1, 4, 4)}, "rows × columns of numbers, not of shape (1, 4, 4)"),
        ({"move": "cat"}, "move takes an object by its word, as {'cat': (32, 0)}, not 'cat'"),
        ({"resize": ["cat"]}, "resize takes an object by its word, as {'cat': 1.5}, not ['cat']"),
        ({"duplicate": {"cat": 32}}, "an object is moved by (x, y) pixels, as (32, 0), not by 32"),
        ({"move": {"cat": (True, 0)}}, "an object is moved by (x, y) pixels, as (32, 0), not by (True, 0)"),
        ({"resize": {"cat": 0}}, "the scale of an object must be a number from 0.1 to 10, not 0"),
        ({"move": {"cat": (1, 0)}, "remove": ["cat"]}, "'cat' is named twice among the objects"),
        ({"move": {"cat": (1, 0)}, "duplicate": {"cat": (2, 0)}}, "'cat' is named twice among the objects"),
        ({"resize": {"cat": 2}, "remove": "cat"}, "'cat' is named twice among the objects"),
        ({"move": {"cat": Move(scale=2)}, "resize": {"cat": 2}}, "'cat' is moved and resized: write Move("),
        ({"remove": [["cat"]]}, "remove takes a word as text, as (text, n), by index or by a range, not as ['cat']"),
        ({"remove": {"cat": Move((1, 0))}}, "'cat' is removed, which takes nothing but a mask"),
        ({"attend": AttentionStore()}, "wrap a function of maps, such as an AttentionStore, in explicit()"),
        ({"attend": "fused"}, "attend is a function of (q, k, v, site)"),
    ],
)
def test_a_bad_value_is_named_in_one_line_before_any_prompt_or_model_is_known(options, message):
    with pytest.raises(ValueError) as error:
        EditOptions(**options)
    assert message in str(error.value) and "\n" not in str(error.value)
