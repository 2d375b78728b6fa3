"""Edits of scenes: a scene, the same scene with one thing changed, and the instruction that asks for the change."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from minip2p.planner.lexicon import article_for
from minip2p.tiny.scenes import (
    ANIMALS,
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    PLACE_PHRASES,
    STYLES,
    THINGS,
    Scene,
    caption_for,
    caption_words,
    is_held_out,
    sample_scene,
)

KINDS = ("object", "add", "remove", "colour", "background", "style", "two")  # "two": one object of two is exchanged
TRAINED_KINDS = (*KINDS, "weather")

# The options of `sample_scene` for each kind.
SCENE_OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "object": {"objects": 1},
        "add": {"objects": 2},
        "remove": {"objects": 2},
        "colour": {"objects": 1},
        "background": {"objects": 1, "attribute": None},
        "style": {"objects": 1, "style": "photo"},
        "two": {"objects": 2},
        "weather": {"attribute": None},
    }
)

# The instructions of an edit. The first is the one that the pairs of `minip2p.pairs.prompts` and the benchmark have.
INSTRUCTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "object": (
            "turn the {old} into {a_new}",
            "make the {old} {a_new}",
            "change the {old} to {a_new}",
            "replace the {old} with {a_new}",
        ),
        "add": ("add {a_new}", "put {a_new} in the picture", "there should be {a_new}"),
        "remove": ("remove the {old}", "take the {old} away", "take out the {old}"),
        "colour": (
            "make the {old} {colour}",
            "paint the {old} {colour}",
            "turn the {old} {colour}",
            "change the color of the {old} to {colour}",
        ),
        "background": ("put it {place}", "make it {place}", "move it {place}", "it should be {place}"),
        "style": ("make it a {style}", "turn it into a {style}", "change it to a {style}"),
        "fog": ("add fog", "make it foggy", "put it in the fog"),
        "flowers": ("add flowers", "put it among flowers", "let there be flowers"),
        "snow": ("make it snow", "let it snow", "it should be snowing"),
        "clear": ("remove the {weather}", "take the {weather} away", "take out the {weather}"),
    }
)
STYLE_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"photo": ("photo",), "sketch": ("pencil sketch", "sketch"), "watercolor": ("watercolor", "watercolor painting")}
)


def choose_other(rng: np.random.Generator, choices: Sequence[str], exclude: Sequence[str]) -> str:
    """A random choice that is not excluded."""
    return str(rng.choice([choice for choice in choices if choice not in exclude]))


def change_scene(kind: str, scene: Scene, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """The scene before and after an edit of a kind."""
    first, last = scene.things[0], scene.things[-1]
    if kind in ("object", "two"):
        kin = ANIMALS if last.name in ANIMALS else THINGS
        new = replace(last, name=choose_other(rng, kin, [thing.name for thing in scene.things]))
        return scene, replace(scene, things=(*scene.things[:-1], new))
    if kind == "add":
        return replace(scene, things=(first,)), scene
    if kind == "remove":
        return scene, replace(scene, things=(first,))
    if kind == "colour":
        return scene, replace(scene, things=(replace(last, colour=choose_other(rng, COLOURS, [last.colour or ""])),))
    if kind == "background":
        return scene, replace(scene, background=choose_other(rng, BACKGROUNDS, [scene.background]))
    if kind == "weather":
        shown = {"meadow": "flowers", "snow": "snow"}.get(scene.background, "")
        return scene, replace(scene, attribute=choose_other(rng, ATTRIBUTES, [shown]), strength=rng.uniform(0.5, 1))
    return scene, replace(scene, style=choose_other(rng, STYLES, ["photo"]))


def sample_edit(kind: str, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """A random scene before and after an edit of a kind. Neither has a combination that is held out."""
    while True:
        scene = sample_scene(rng, **SCENE_OPTIONS[kind])
        if kind == "colour" and (not scene.things[0].colour or scene.style == "sketch"):
            continue  # sketches hardly show colours
        before, after = change_scene(kind, scene, rng)
        if not is_held_out(before) and not is_held_out(after):
            return before, after


def with_full_caption(scene: Scene, seed: int) -> Scene:
    """The scene with a caption that names its place and colours. Captions of the same seed have the same wording."""
    caption = caption_for(
        np.random.default_rng(seed),
        scene.things,
        scene.background,
        scene.style,
        scene.attribute,
        scene.strength,
        name_place=True,
        name_colour=True,
    )
    return replace(scene, caption=caption)


def name_change(before: Scene, after: Scene) -> tuple[str, dict[str, str]]:
    """The key of INSTRUCTIONS for the difference of two scenes, and what fills the slots of its templates."""
    old, new = before.things[-1], after.things[-1]
    if before.style != after.style:
        return "style", {"style": STYLE_NAMES[after.style][0]}
    if before.background != after.background:
        return "background", {"place": PLACE_PHRASES[after.background][0]}
    if before.attribute != after.attribute:
        weather = str(before.attribute)
        return (after.attribute, {}) if after.attribute else ("clear", {"weather": weather})
    if len(before.things) > len(after.things):
        return "remove", {"old": old.name}
    if len(before.things) < len(after.things):
        added = f"{new.colour} {new.name}" if new.colour else new.name
        return "add", {"a_new": f"{article_for(added)} {added}"}
    if old.name != new.name:
        return "object", {"old": old.name, "a_new": f"{article_for(new.name)} {new.name}"}
    return "colour", {"old": old.name, "colour": str(new.colour)}


def instruction_for(before: Scene, after: Scene, rng: np.random.Generator | None = None) -> str:
    """The instruction that makes `after` of `before`. rng: draws the wording; None takes the first of each list."""
    key, slots = name_change(before, after)
    if rng is None:
        return INSTRUCTIONS[key][0].format(**slots)
    if key == "style":
        slots = {"style": str(rng.choice(STYLE_NAMES[after.style]))}
    if key == "background":
        slots = {"place": str(rng.choice(PLACE_PHRASES[after.background]))}
    return str(rng.choice(INSTRUCTIONS[key])).format(**slots)


def instruction_words() -> list[str]:
    """All words of all instructions and captions, sorted."""
    templates = " ".join(template for group in INSTRUCTIONS.values() for template in group)
    return sorted({*re.sub(r"\{\w+\}", "", templates).split(), *caption_words()})
