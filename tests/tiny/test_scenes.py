"""The scenes of the tiny world: their words, their captions, and the split into training and held-out scenes."""

import numpy as np
import pytest

from minip2p.tiny import scenes
from minip2p.tiny.draw import BACKGROUND_RGB
from minip2p.tiny.scenes import (
    ANIMALS,
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    STYLES,
    THINGS,
    Thing,
    caption_for,
    caption_words,
    combination_held_out,
    dataset,
    is_held_out,
    sample_scene,
)
from minip2p.tiny.sprites import CODEPOINTS, COLOUR_RGB


def test_every_word_of_the_world_has_phrases_colours_and_sprites():
    assert [len(names) for names in (ANIMALS, THINGS, COLOURS, BACKGROUNDS, STYLES, ATTRIBUTES)] == [16, 14, 7, 8, 3, 3]
    assert set(scenes.PLACE_PHRASES) == set(BACKGROUND_RGB) == set(BACKGROUNDS)
    assert set(scenes.ATTRIBUTE_PHRASES) == set(ATTRIBUTES) and set(scenes.STYLE_PHRASES) == set(STYLES)
    assert tuple(CODEPOINTS) == OBJECTS and tuple(COLOUR_RGB) == COLOURS


def test_the_held_out_split_never_changes():
    """Fixed values: another hash would move held-out combinations into the training."""
    held_out = [
        (name, colour, background)
        for name in OBJECTS
        for colour in (COLOURS if name in THINGS else (None,))
        for background in BACKGROUNDS
        if combination_held_out(name, colour, background)
    ]
    assert len(held_out) == 97
    of_three = [background for name, _, background in held_out if name in ("dog", "cow", "lion")]
    assert of_three == ["snow", "sea", "grass", "snow", "beach", "night"]
    assert not any(name == "cat" for name, _, _ in held_out)


def test_the_splits_are_disjoint():
    def combinations(held_out):
        return [{(t.name, t.colour, s.background) for t in s.things} for s in dataset(5, 300, held_out=held_out)]

    held_out = [c for scene in combinations(True) for c in scene if combination_held_out(*c)]
    assert held_out and not set(held_out) & set().union(*combinations(False))
    assert all(is_held_out(scene) for scene in dataset(6, 40, held_out=True))
    with pytest.raises(ValueError, match="held_out=True"):
        sample_scene(np.random.default_rng(0), held_out=True, names=("cat",))


def test_scene_i_depends_on_seed_and_i_alone():
    ten = list(dataset(7, 10))
    assert ten[:3] == list(dataset(7, 3)) and ten[6:] == list(dataset(7, 4, start=6))
    assert ten != list(dataset(8, 10))


def test_captions_name_what_is_there():
    for scene in dataset(9, 400):
        words = scene.caption.replace(",", "").split()
        assert all(words.count(thing.name) == 1 for thing in scene.things)
        assert ("sketch" in words, "watercolor" in words) == (scene.style == "sketch", scene.style == "watercolor")
        assert set(words) & set(COLOURS) <= {thing.colour for thing in scene.things}
        assert set(words) & set(BACKGROUNDS) <= {scene.background, scene.attribute}
        assert scene.attribute is None or scene.attribute in words
        assert "  " not in scene.caption and scene.caption == scene.caption.strip()


def test_captions_vary_in_what_they_leave_out():
    fixed = {"names": ("chair",), "colours": ("blue",), "background": "beach", "style": "photo", "attribute": None}
    assert {
        "a blue chair on the beach",
        "a photo of a blue chair at the beach",
        "on the beach, a blue chair",
        "a blue chair",
        "a chair on the beach",
    } <= {scene.caption for scene in dataset(10, 400, **fixed)}
    for scene in dataset(11, 50, names=("chair",), name_place=True, name_colour=True):
        assert set(scene.caption.replace(",", "").split()) & set(COLOURS)


def test_directions_are_those_of_the_things_and_only_on_request():
    """In four of five captions; of all else the caption is the same. A balloon has no side."""
    rng, said_of = np.random.default_rng(0), {"cat": 0, "truck": 0, "balloon": 0}
    things = tuple(
        Thing(name, colour, 40, 100, 60, flip)
        for name, colour, flip in (("cat", None, False), ("truck", "red", True), ("balloon", "blue", False))
    )
    for _ in range(300):
        caption = caption_for(rng, things, "beach", "photo", None, 0.0, name_colour=True, directions=True)
        for name, phrase in (
            ("cat", "cat facing left"),
            ("truck", "truck facing right"),
            ("balloon", "balloon facing"),
        ):
            said_of[name] += phrase in caption
        assert caption.count("facing left") <= 1 and caption.count("facing right") <= 1
        assert set(caption.replace(",", "").split()) <= set(caption_words(directions=True))
    assert 0.7 < said_of["cat"] / 300 < 0.9 and 0.7 < said_of["truck"] / 300 < 0.9 and said_of["balloon"] == 0
    assert not {"facing", "left", "right"} & set(caption_words())
    plain, asked = (
        caption_for(np.random.default_rng(1), things[2:], "beach", "photo", None, 0.0, directions=directions)
        for directions in (False, True)
    )
    assert plain == asked  # nothing more is drawn for things without a side


def test_a_faint_attribute_is_not_named():
    assert "fog" not in next(dataset(12, 1, attribute="fog", strength=0.1)).caption


def test_unknown_fixed_values_are_an_error():
    with pytest.raises(ValueError, match="weather"):
        sample_scene(np.random.default_rng(0), weather="rain")


def test_no_scene_has_an_attribute_that_its_background_already_shows():
    """Fog may be anywhere; flowers in a meadow or snowfall in the snow could not be told from the background."""
    pairs = [(scene.background, scene.attribute) for scene in dataset(11, 800)]
    assert ("meadow", "flowers") not in pairs and ("snow", "snow") not in pairs
    assert {attribute for _, attribute in pairs} == {None, *ATTRIBUTES}
