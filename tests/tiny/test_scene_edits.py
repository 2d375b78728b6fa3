"""Edits of scenes: what they change, what is held out, and the instructions that ask for them."""

from dataclasses import replace

import numpy as np
import pytest

from minip2p.tiny.export import load_tokenizer
from minip2p.tiny.scene_edits import (
    INSTRUCTIONS,
    TRAINED_KINDS,
    instruction_for,
    instruction_words,
    sample_edit,
)
from minip2p.tiny.scenes import Scene, Thing, caption_words, is_held_out

CAR = Thing("car", "red", 64.0, 100.0, 60.0, False)
CAT = Thing("cat", None, 30.0, 100.0, 50.0, False)
SCENE = Scene((CAT, CAR), "beach", "photo", None, 0.0, 60.0, "", 1)


def with_last(**fields):
    return replace(SCENE, things=(CAT, replace(CAR, **fields)))


@pytest.mark.parametrize(
    "after, there, back",
    [
        (with_last(name="umbrella"), "turn the car into an umbrella", "turn the umbrella into a car"),
        (with_last(colour="blue"), "make the car blue", "make the car red"),
        (replace(SCENE, things=(CAT,)), "remove the car", "add a red car"),
        (replace(SCENE, background="night"), "put it at night", "put it on the beach"),
        (replace(SCENE, style="sketch"), "make it a pencil sketch", "make it a photo"),
        (replace(SCENE, attribute="snow"), "make it snow", "remove the snow"),
        (replace(SCENE, attribute="fog"), "add fog", "remove the fog"),
    ],
)
def test_an_instruction_says_what_differs(after, there, back):
    assert (instruction_for(SCENE, after), instruction_for(after, SCENE)) == (there, back)


@pytest.mark.parametrize("kind", TRAINED_KINDS)
def test_trained_edits_have_no_combination_that_is_held_out_and_change_one_thing(kind):
    changed = {"background": "background", "style": "style", "weather": "attribute"}.get(kind, "things")
    for number in range(40):
        before, after = sample_edit(kind, np.random.default_rng((5, number)))
        assert not is_held_out(before) and not is_held_out(after)
        names = ("things", "background", "style", "attribute", "horizon", "seed")
        assert [name for name in names if getattr(before, name) != getattr(after, name)] == [changed]


def test_wordings_are_drawn_from_the_list_and_their_words_are_known():
    """Words of the captions besides, which are all written in one token."""
    texts = {instruction_for(SCENE, with_last(colour="blue"), np.random.default_rng(i)) for i in range(60)}
    assert texts == {text.format(old="car", colour="blue") for text in INSTRUCTIONS["colour"]}
    known = set(instruction_words())
    assert {word for text in texts for word in text.split()} <= known and "{old}" not in known
    assert set(caption_words()) <= known
    assert all(load_tokenizer().tokenize(word) for word in known)
