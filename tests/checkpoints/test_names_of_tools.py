"""Every name that other tools give to the tensors of adapters is read, or its kind is named; docs/models.md counts."""

from collections import Counter
from functools import cache

import pytest
from official_models import OfficialModel, tool_row, tools

from minip2p.checkpoints.adapter_names import Layer, is_unread, other_kind, split_suffix

ADAPTERS = tools()["adapters"]
official = cache(OfficialModel)


def layer_of(place):
    """The layer "component name" of the data, whose names of text encoders are those of transformers 5."""
    component, _, name = place.partition(" ")
    return Layer(component, name)


@cache
def stems(number):
    """How many names of a set are read and passed over. Each is the layer that the tool itself takes it for."""
    data, counts = ADAPTERS["sets"][number], Counter()
    names = official(data["family"]).names
    for place, aliases in data["layers"].items():
        for alias in aliases:
            layer = names.find(alias)
            if not place:
                assert layer is None and is_unread(alias), alias
            else:
                known = layer and Layer(layer.component, layer.name.removeprefix("text_model."))
                assert known == layer_of(place), alias
            counts["passed over" if layer is None else "read"] += 1
    return counts


def count_names(tool):
    """How many names of a tool's forms are read, passed over, and refused as another kind."""
    totals = Counter()
    for form in ADAPTERS["forms"]:
        if form["tool"] != tool:
            continue
        counts = stems(form["set"])
        example = next(iter(ADAPTERS["sets"][form["set"]]["layers"].values()))[0]
        sentence = other_kind(example + suffix for suffix in form["suffixes"])
        if form["kind"]:
            assert form["kind"] in sentence, form
            totals["other kinds"] += counts.total() * len(form["suffixes"])
            continue
        assert sentence is None, form
        for suffix in form["suffixes"]:
            assert split_suffix(example + suffix)[0] == example, (example, suffix)
        for result, count in counts.items():
            totals[result] += count * len(form["suffixes"])
    return totals


TOOLS = sorted({form["tool"] for form in ADAPTERS["forms"]})


@pytest.mark.parametrize("tool", TOOLS)
def test_every_name_of_a_tools_adapters_is_read_or_its_kind_is_named(tool):
    """And the table in docs/models.md has the counts."""
    counts = count_names(tool)
    row = tool_row(tool)
    assert row[:3] == [counts[result] for result in ("read", "passed over", "other kinds")]
