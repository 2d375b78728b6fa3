"""The settings of a PNG, as fields of the page."""

import time

import pytest

from minip2p.sampling import metadata
from minip2p.web.png_settings import MAX_CHARACTERS, parse_parameters


def test_the_settings_that_a_run_writes_are_read_again(model):
    run = model.generate('a "cat", on: the beach', seed=3, steps=1, guidance_scale=2.5, negative_prompt="fog, snow")
    text = metadata.parameters(
        run, Cross="0.6", Self="0.2", Reweight="a=2.0, cat=-0.5", Blend="cat:dog", Threshold="0.4", Paste=True
    )
    settings = parse_parameters(text)
    assert settings["prompt"] == 'a "cat", on: the beach' and settings["negative"] == "fog, snow"
    assert (settings["seed"], settings["steps"], settings["guidance"]) == (3, 1, 2.5)
    assert (settings["cross"], settings["self"], settings["threshold"]) == (0.6, 0.2, 0.4)
    assert settings["weights"] == {"a": 2.0, "cat": -0.5}
    assert settings["blend"] == {"source": ["cat"], "target": ["dog"]}
    assert settings["method"] is None and settings["source"] is None and settings["paste"]
    assert not settings["region"] and parse_parameters(f"{text}, Within: region.png")["region"]


def test_objects_are_read_as_a_request_has_them():
    """In the order that they have for the library: those that are only resized are in front of those that are moved."""
    moves = 'Move: "cat:24,-0.5, b#2:0,0", Resize: "house:1.5, b#2:0.7, pig:2", Duplicate: "pig:8,0", Remove: sun'
    assert parse_parameters(f"a\nSteps: 1, {moves}")["objects"] == [
        {"word": "cat", "kind": "move", "x": 24, "y": -0.5, "scale": 1},
        {"word": "b#2", "kind": "move", "x": 0, "y": 0, "scale": 0.7},
        {"word": "house", "kind": "move", "x": 0, "y": 0, "scale": 1.5},
        {"word": "pig", "kind": "duplicate", "x": 8, "y": 0, "scale": 2},
        {"word": "sun", "kind": "remove"},
    ]
    assert parse_parameters("a\nSteps: 1")["objects"] == []
    for wrong in ("cat:8", "cat:8,0,0", "cat", "cat:nan,0", "cat:x,y"):
        assert parse_parameters(f'a\nSteps: 1, Move: "{wrong}"')["objects"] is None


def test_what_cannot_be_read_is_missing():
    settings = parse_parameters(
        'a cat\nSteps: many, Seed: 1, Cross: 0.8:0.9, Blend: cat, Source: "a, b", Reweight: x, Method: ddim'
    )
    assert settings["steps"] is None and settings["seed"] == 1 and settings["cross"] is None
    assert settings["blend"] == {"source": ["cat"], "target": ["cat"]} and settings["source"] == "a, b"
    assert parse_parameters("a cat\nSteps: 1, Cross: nan, Reweight: cat=inf")["weights"] is None
    assert settings["weights"] is None and settings["method"] == "ddim" and not settings["paste"]
    assert parse_parameters("only a prompt")["prompt"] == "only a prompt"


@pytest.mark.parametrize("text", ["x", "a b-/", " ", ": ", 'ab: "', 'ab: "x\\",', 'ab: \\"'])
def test_no_text_takes_long_to_read(text):
    """Anybody can make such a file, and regular expressions may take a time that grows with the square of it."""
    start = time.process_time()
    parse_parameters("a cat\n" + text * ((MAX_CHARACTERS - 6) // len(text)))
    assert time.process_time() - start < 1
    with pytest.raises(ValueError, match="its settings have 10001 characters, and 10000 are the most"):
        parse_parameters("x" * 10_001)
