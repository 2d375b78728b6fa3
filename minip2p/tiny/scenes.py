"""The tiny world: scenes of one or two objects in a place, their captions, their pictures and their true masks.

Objects are Microsoft's Fluent 3D emoji (MIT licence) from the npm package @lobehub/fluent-emoji-3d; the training recipe
fetches them and they are never committed. A `Scene` fixes everything, so `render` is a pure function of it.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from minip2p.tiny import draw
from minip2p.tiny.draw import SIZE

CODEPOINTS = MappingProxyType(
    {
        "cat": "1f408",
        "dog": "1f415",
        "rabbit": "1f407",
        "horse": "1f40e",
        "cow": "1f404",
        "pig": "1f416",
        "sheep": "1f411",
        "elephant": "1f418",
        "tiger": "1f405",
        "camel": "1f42a",
        "duck": "1f986",
        "turtle": "1f422",
        "penguin": "1f427",
        "giraffe": "1f992",
        "zebra": "1f993",
        "lion": "1f981",
        "car": "1f697",
        "balloon": "1f388",
        "apple": "1f34e",
        "umbrella": "2602-fe0f",
        "chair": "1fa91",
        "tulip": "1f337",
        "house": "1f3e0",
        "bicycle": "1f6b2",
        "cake": "1f382",
        "backpack": "1f392",
        "hat": "1f452",
        "guitar": "1f3b8",
        "truck": "1f69a",
        "lamp": "1fa94",
    }
)


ANIMALS, THINGS = tuple(CODEPOINTS)[:16], tuple(CODEPOINTS)[16:]


COLOURS = tuple(draw.PAINT)


BACKGROUNDS = tuple(draw.LAND)


STYLES = ("photo", "sketch", "watercolor")


ATTRIBUTES = ("fog", "flowers", "snow")


PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"


TARBALL = "lobehub-fluent-emoji-3d-1.1.0.tgz"


SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"


FAINT = 0.15  # an attribute weaker than this is not named


PLACE_WORDS = MappingProxyType(
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


ATTRIBUTE_WORDS = MappingProxyType(
    {
        "fog": ("in the fog", "in fog"),
        "flowers": ("with flowers", "among flowers"),
        "snow": ("in falling snow", "with falling snow"),
    }
)


STYLE_WORDS = MappingProxyType(
    {  # before the subject, after the sentence
        "photo": (("a photo of ", ""), ("", ""), ("", "")),
        "sketch": (("a pencil sketch of ", ""), ("a sketch of ", ""), ("", ", pencil sketch")),
        "watercolor": (("a watercolor of ", ""), ("a watercolor painting of ", ""), ("", ", watercolor")),
    }
)


@dataclass(frozen=True)
class Thing:
    """An object: x of its centre, y of its foot and its longer side in pixels; colour is None for an animal."""

    name: str
    colour: str | None
    x: float
    foot: float
    size: float
    flip: bool


@dataclass(frozen=True)
class Scene:
    """All that a picture shows. The horizon is a row; strength in [0, 1]; seed places clouds, flowers and flakes."""

    things: tuple[Thing, ...]
    background: str
    style: str
    attribute: str | None
    strength: float
    horizon: float
    caption: str
    seed: int


@dataclass(frozen=True)
class Render:
    """A picture (SIZE, SIZE, 3) uint8, and for each object's word and the place's a mask (SIZE, SIZE) bool."""

    picture: np.ndarray
    masks: Mapping[str, np.ndarray]


class Sprites:
    """Cut-out objects in all their colours, from RGBA arrays (h, w, 4) uint8 by name."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        small = {name: shrink_sprite(array) for name, array in arrays.items()}
        self.images = MappingProxyType(
            {
                (name, colour): Image.fromarray(draw.paint_sprite(sprite, name, colour) if colour else sprite)
                for name, sprite in small.items()
                for colour in (COLOURS if name in THINGS else (None,))
            }
        )

    @classmethod
    def load(cls, path: str | Path) -> Sprites:
        """Read the objects from the npm package's tarball; ValueError if it or a member of it is missing."""
        if not Path(path).is_file():
            raise ValueError(f"no sprites at {path}: get them with minip2p.tiny.scenes.fetch_sprites(folder)")
        wanted = {f"package/assets/{code}.webp": name for name, code in CODEPOINTS.items()}
        arrays = {}
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name in wanted and (file := tar.extractfile(member)):
                    arrays[wanted[member.name]] = np.asarray(Image.open(file).convert("RGBA"))
        if missing := sorted(CODEPOINTS.keys() - arrays):
            raise ValueError(f"{path} lacks the sprites of {', '.join(missing)}; expected {PACKAGE}")
        return cls(arrays)

    def image(self, thing: Thing) -> Image.Image:
        """The thing at its size, RGBA; ValueError if there is no such sprite."""
        if (thing.name, thing.colour) not in self.images:
            raise ValueError(f"no sprite of a {thing.colour or 'plain'} {thing.name} among those loaded")
        sprite = self.images[thing.name, thing.colour]
        scale = thing.size / max(sprite.size)
        # Pillow multiplies colour by alpha before it resizes RGBA, so no fringe comes in from outside the object
        sprite = sprite.resize([max(1, round(side * scale)) for side in sprite.size], Image.Resampling.LANCZOS)
        return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if thing.flip else sprite


def shrink_sprite(sprite: np.ndarray, side: int = 112) -> np.ndarray:
    """A sprite cut to its opaque box, its longer side at most `side` pixels: so quick to scale."""
    image = Image.fromarray(sprite).crop(Image.fromarray(sprite[..., 3]).getbbox())
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def fetch_sprites(folder: str | Path) -> Path:
    """The tarball's path in a folder, fetched with `npm pack` if it is not there; ValueError if its bytes differ."""
    path = Path(folder) / TARBALL
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", PACKAGE, "--pack-destination", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            raise ValueError(f"{path}: not there, and {' '.join(command[:3])} could not fetch it: {why}") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{path} is not {PACKAGE}: its sha256 differs; delete it and fetch again")
    return path


def combination_held_out(name: str, colour: str | None, background: str) -> bool:
    """Whether object x colour x place is kept from training: about one in ten, by a hash that no run changes."""
    digest = hashlib.sha256(f"{name}|{colour or ''}|{background}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 10 == 0


def is_held_out(scene: Scene) -> bool:
    """Whether any object of the scene makes a held-out combination."""
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
) -> str:
    """One of a scene's wordings; None leaves it to chance whether the place (6 in 7) and colours (7 in 8) are named."""
    name_place = rng.random() < 6 / 7 if name_place is None else name_place
    subjects = []
    for thing in things:
        said = rng.random() < 7 / 8 if name_colour is None else name_colour
        words = f"{thing.colour} {thing.name}" if thing.colour and said else thing.name
        subjects.append(("an " if words[0] in "aeiou" else "a ") + words)
    before, after = STYLE_WORDS[style][rng.integers(3)]
    place = str(rng.choice(PLACE_WORDS[background])) if name_place else ""
    mood = str(rng.choice(ATTRIBUTE_WORDS[attribute])) if attribute and strength >= FAINT else ""
    subject = before + " and ".join(subjects)
    if place and not before and rng.random() < 1 / 3:
        return " ".join(filter(None, (f"{place},", subject, mood))) + after
    return " ".join(filter(None, (subject, place, mood))) + after


def place_things(rng: np.random.Generator, names, colours, horizon: float) -> tuple[Thing, ...]:
    """Give one or two objects a place on the ground, two of them side by side with boxes that hardly overlap."""
    low, high = (54, 84) if len(names) == 1 else (44, 62)
    sizes = rng.uniform(low, high, len(names))
    slack = SIZE - 2 - sizes.sum() + 4 * (len(names) - 1)
    left, right = np.sort(rng.uniform(0, slack, 2))
    xs = (1 + left + sizes[0] / 2, SIZE - 1 - (slack - right) - sizes[-1] / 2)
    if len(names) == 2 and rng.random() < 0.5:
        xs = tuple(SIZE - x for x in xs)
    feet = rng.uniform(np.maximum(horizon + 10, sizes + 3), SIZE - 4)
    return tuple(
        Thing(str(n), c and str(c), float(x), float(f), float(s), bool(rng.random() < 0.5))
        for n, c, x, f, s in zip(names, colours, xs, feet, sizes, strict=False)  # xs are always two
    )


def draw_scene(rng: np.random.Generator, fixed: Mapping) -> Scene:
    """A scene from the whole world, held-out combinations included; `fixed` as in sample_scene."""
    count = len(fixed["names"]) if "names" in fixed else fixed.get("objects", int(rng.integers(1, 3)))
    names = fixed.get("names", tuple(map(str, rng.permutation(tuple(CODEPOINTS))[:count])))
    colours = tuple(str(rng.choice(COLOURS)) if name in THINGS else None for name in names)
    free = {
        "objects": count,
        "names": names,
        "colours": colours,
        "background": str(rng.choice(BACKGROUNDS)),
        "style": str(rng.choice(STYLES, p=(0.6, 0.2, 0.2))),
        "attribute": (None, *ATTRIBUTES)[rng.choice(4, p=(0.55, 0.15, 0.15, 0.15))],
        "strength": float(rng.uniform(FAINT, 1)),
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
    seed = int(rng.integers(2**31))  # before the caption, whose draws differ with what it names
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
    """A random scene of the training or the held-out split. ValueError if what is fixed leaves none in that split.

    What can be fixed: objects (1 or 2), names and colours (a tuple each), background, style, attribute, strength,
    horizon, and for the caption name_place and name_colour.
    """
    for _ in range(1000):
        scene = draw_scene(rng, fixed)
        if is_held_out(scene) == held_out:
            return scene
    raise ValueError(f"no scene with held_out={held_out} among those with {fixed}")


def dataset(seed: int, n: int, *, start: int = 0, held_out: bool = False, **fixed) -> Iterator[Scene]:
    """Scenes start .. start + n - 1 of a seed; scene i depends on (seed, i) alone."""
    for i in range(start, start + n):
        yield sample_scene(np.random.default_rng((seed, i)), held_out=held_out, **fixed)


def paste(picture: np.ndarray, thing: Thing, sprites: Sprites) -> tuple[np.ndarray, np.ndarray]:
    """Set a thing on the ground with its shadow: the picture, and the thing's coverage (SIZE, SIZE) in [0, 1]."""
    sprite = sprites.image(thing)
    layer = Image.new("RGBA", (SIZE, SIZE))
    layer.paste(sprite, (round(thing.x - sprite.width / 2), round(thing.foot) - sprite.height))
    cut = np.asarray(layer, np.float32) / 255
    alpha = cut[..., 3]
    shadow = draw.glow(thing.x, thing.foot - 1, 0.48 * sprite.width, 0.05 * thing.size)
    picture = draw.mix(picture, (20, 20, 40), 0.45 * shadow)
    return picture + (cut[..., :3] - picture) * alpha[..., None], alpha


def render(scene: Scene, sprites: Sprites) -> Render:
    """The scene's picture and masks. The nearer object, whose foot is lower, hides the other; masks are disjoint."""
    rng, details = np.random.default_rng((scene.seed, 0)), np.random.default_rng((scene.seed, 1))
    picture = draw.background(scene.background, scene.horizon, rng)
    if scene.attribute == "flowers":
        picture = draw.with_flowers(picture, scene.strength, scene.horizon, details)
    covers: dict[str, np.ndarray] = {}
    for thing in sorted(scene.things, key=lambda t: t.foot):
        picture, alpha = paste(picture, thing, sprites)
        covers = {name: cover * (1 - alpha) for name, cover in covers.items()} | {thing.name: alpha}
    masks = {thing.name: covers[thing.name] >= 0.5 for thing in scene.things}
    masks[scene.background] = ~np.any(list(masks.values()), axis=0)
    if scene.attribute == "fog":
        picture = draw.with_fog(picture, scene.strength, np.sum(list(covers.values()), axis=0))
    if scene.attribute == "snow":
        picture = draw.with_snow(picture, scene.strength, details)
    if scene.style == "sketch":
        picture = draw.sketch(picture)
    if scene.style == "watercolor":
        picture = draw.watercolor(picture, details)
    return Render((np.clip(picture, 0, 1) * 255).round().astype(np.uint8), MappingProxyType(masks))
