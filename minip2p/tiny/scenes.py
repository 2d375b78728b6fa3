"""The scenes of the tiny world: one or two objects in a place, and a caption. Words and numbers only, no pixels.

A `Scene` fixes everything that its picture shows, so that `minip2p.tiny.render.render` is a pure function of it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

SIZE = 128  # height and width of a picture, in pixels

ANIMALS = tuple(
    "cat dog rabbit horse cow pig sheep elephant tiger camel duck turtle penguin giraffe zebra lion".split()
)
THINGS = tuple(  # the objects that come in colours
    "car balloon apple umbrella chair tulip house bicycle cake backpack hat guitar truck lamp".split()
)
OBJECTS = ANIMALS + THINGS
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
BACKGROUNDS = ("grass", "beach", "snow", "desert", "night", "street", "meadow", "sea")
STYLES = ("photo", "sketch", "watercolor")
ATTRIBUTES = ("fog", "flowers", "snow")
SIDED_OBJECTS = frozenset(  # those that look to a side, which is left unless they are flipped
    "cat dog rabbit horse cow pig sheep elephant tiger camel duck turtle giraffe zebra car bicycle truck".split()
)
DIRECTIONS = ("left", "right")  # not flipped, flipped
MIN_NAMED_STRENGTH = 0.15  # captions do not name an attribute weaker than this

PLACE_PHRASES = MappingProxyType(
    {
        "grass": ("on the grass", "on grass"),
        "beach": ("on the beach", "at the beach"),
        "snow": ("in the snow", "on the snow"),
        "desert": ("in the desert", "in a desert"),
        "night": ("at night", "in the night"),
        "street": ("on the street", "on a street"),
        "meadow": ("in a meadow", "in the meadow"),
        "sea": ("at sea", "on the sea"),
    }
)
ATTRIBUTE_PHRASES = MappingProxyType(
    {
        "fog": ("in the fog", "in fog"),
        "flowers": ("with flowers", "among flowers"),
        "snow": ("in falling snow", "with falling snow"),
    }
)
STYLE_PHRASES = MappingProxyType(
    {  # (before the subject, at the end of the sentence)
        "photo": (("a photo of ", ""), ("", ""), ("", "")),
        "sketch": (("a pencil sketch of ", ""), ("a sketch of ", ""), ("", ", pencil sketch")),
        "watercolor": (("a watercolor of ", ""), ("a watercolor painting of ", ""), ("", ", watercolor")),
    }
)


def phrase_groups() -> dict[str, list[str]]:
    """The phrases that captions are made of, by what they name."""
    styles = [text.strip(" ,") for pairs in STYLE_PHRASES.values() for pair in pairs for text in pair if text]
    return {
        "animals": list(ANIMALS),
        "things": list(THINGS),
        "colours": list(COLOURS),
        "places": [phrase for phrases in PLACE_PHRASES.values() for phrase in phrases],
        "weather": [phrase for phrases in ATTRIBUTE_PHRASES.values() for phrase in phrases],
        "styles": styles,
    }


def caption_words(*, directions: bool = False) -> list[str]:
    """All words of all captions, sorted. directions: see `caption_for`."""
    phrases = [phrase for group in phrase_groups().values() for phrase in group]
    phrases += ["facing", *DIRECTIONS] if directions else []
    return sorted({word for phrase in ("a an and", *phrases) for word in phrase.split()})


@dataclass(frozen=True)
class Thing:
    """An object in a scene: x of its centre, y of its foot and its longer side, in pixels. Animals have no colour."""

    name: str
    colour: str | None
    x: float
    foot: float
    size: float
    flip: bool


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows.

    strength: of the attribute, in [0, 1]. horizon: a pixel row. seed: determines clouds, flowers and snowflakes.
    """

    things: tuple[Thing, ...]
    background: str
    style: str
    attribute: str | None
    strength: float
    horizon: float
    caption: str
    seed: int


def combination_held_out(name: str, colour: str | None, background: str) -> bool:
    """Whether a combination of object, colour and background is kept out of the training.

    About one in ten is. A hash of the words decides, so that the split is the same in every run.
    """
    digest = hashlib.sha256(f"{name}|{colour or ''}|{background}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 10 == 0


def is_held_out(scene: Scene) -> bool:
    """Whether any object of the scene is in a held-out combination."""
    return any(combination_held_out(t.name, t.colour, scene.background) for t in scene.things)


def caption_for(
    rng: np.random.Generator,
    things: tuple[Thing, ...],
    background: str,
    style: str,
    attribute: str | None,
    strength: float,
    *,
    name_place: bool | None = None,
    name_colour: bool | None = None,
    directions: bool = False,
) -> str:
    """A random caption of a scene.

    name_place, name_colour: whether it names the place and the colours; None names the place with probability 6/7 and
    each colour with probability 7/8. directions: it says of each of SIDED_OBJECTS with probability 4/5 to which side
    it looks ("facing left").
    """
    name_place = rng.random() < 6 / 7 if name_place is None else name_place
    subjects = []
    for thing in things:
        named = rng.random() < 7 / 8 if name_colour is None else name_colour
        words = f"{thing.colour} {thing.name}" if thing.colour and named else thing.name
        article = "an" if words[0] in "aeiou" else "a"
        faces = directions and thing.name in SIDED_OBJECTS and rng.random() < 4 / 5
        subjects.append(f"{article} {words}" + (f" facing {DIRECTIONS[thing.flip]}" if faces else ""))
    before, after = STYLE_PHRASES[style][rng.integers(3)]
    place = str(rng.choice(PLACE_PHRASES[background])) if name_place else ""
    mood = str(rng.choice(ATTRIBUTE_PHRASES[attribute])) if attribute and strength >= MIN_NAMED_STRENGTH else ""
    subject = before + " and ".join(subjects)
    if place and not before and rng.random() < 1 / 3:
        return " ".join(filter(None, (f"{place},", subject, mood))) + after
    return " ".join(filter(None, (subject, place, mood))) + after


def place_things(rng: np.random.Generator, names, colours, horizon: float) -> tuple[Thing, ...]:
    """Puts one object on the ground, or two side by side whose boxes hardly overlap."""
    low, high = (54, 84) if len(names) == 1 else (44, 62)
    sizes = rng.uniform(low, high, len(names))
    slack = SIZE - 2 - sizes.sum() + 4 * (len(names) - 1)
    left, right = np.sort(rng.uniform(0, slack, 2))
    xs = (1 + left + sizes[0] / 2, SIZE - 1 - (slack - right) - sizes[-1] / 2)
    if len(names) == 2 and rng.random() < 0.5:
        xs = tuple(SIZE - x for x in xs)
    feet = rng.uniform(np.maximum(horizon + 10, sizes + 3), SIZE - 4)
    return tuple(
        Thing(str(name), colour and str(colour), float(x), float(foot), float(size), bool(rng.random() < 0.5))
        for name, colour, x, foot, size in zip(names, colours, xs, feet, sizes, strict=False)  # xs has two elements
    )


def propose_scene(rng: np.random.Generator, fixed: Mapping) -> Scene:
    """A random scene of either split. `fixed` as in `sample_scene`."""
    count = len(fixed["names"]) if "names" in fixed else fixed.get("objects", int(rng.integers(1, 3)))
    names = fixed.get("names", tuple(map(str, rng.permutation(OBJECTS)[:count])))
    colours = tuple(str(rng.choice(COLOURS)) if name in THINGS else None for name in names)
    free = {
        "objects": count,
        "names": names,
        "colours": colours,
        "background": str(rng.choice(BACKGROUNDS)),
        "style": str(rng.choice(STYLES, p=(0.6, 0.2, 0.2))),
        "attribute": (None, *ATTRIBUTES)[rng.choice(4, p=(0.55, 0.15, 0.15, 0.15))],
        "strength": float(rng.uniform(MIN_NAMED_STRENGTH, 1)),
        "horizon": float(rng.uniform(46, 78)),
        "name_place": None,
        "name_colour": None,
    }
    if unknown := sorted(fixed.keys() - free):
        raise ValueError(f"a scene has no {', '.join(unknown)}; what can be fixed: {', '.join(free)}")
    s = free | dict(fixed)
    if "attribute" not in fixed and (s["background"], s["attribute"]) in (("meadow", "flowers"), ("snow", "snow")):
        s["attribute"] = None  # the place already shows it, so its strength could not be told
    strength = s["strength"] if s["attribute"] else 0.0
    things = place_things(rng, s["names"], s["colours"], s["horizon"])
    seed = int(rng.integers(2**31))  # drawn before the caption, which takes a varying number of draws
    caption = caption_for(
        rng,
        things,
        s["background"],
        s["style"],
        s["attribute"],
        strength,
        name_place=s["name_place"],
        name_colour=s["name_colour"],
    )
    return Scene(things, s["background"], s["style"], s["attribute"], strength, s["horizon"], caption, seed)


def sample_scene(rng: np.random.Generator, *, held_out: bool = False, **fixed) -> Scene:
    """A random scene of the training split, or of the held-out split.

    What can be fixed: objects (1 or 2), names and colours (a tuple each), background, style, attribute, strength,
    horizon, and for the caption name_place and name_colour (see `caption_for`).
    Raises ValueError for any other keyword, and if the split has no scene with the fixed values.
    """
    for _ in range(1000):
        scene = propose_scene(rng, fixed)
        if is_held_out(scene) == held_out:
            return scene
    raise ValueError(f"no scene with held_out={held_out} among those with {fixed}")


def dataset(seed: int, n: int, *, start: int = 0, held_out: bool = False, **fixed) -> Iterator[Scene]:
    """Scenes start … start + n − 1 of a seed. Scene i depends on (seed, i) alone. For `fixed` see `sample_scene`."""
    for i in range(start, start + n):
        yield sample_scene(np.random.default_rng((seed, i)), held_out=held_out, **fixed)
