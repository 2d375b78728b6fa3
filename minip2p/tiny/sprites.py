"""The objects of the tiny world as cut-out pictures, in all their colours.

They are Microsoft's Fluent 3D emoji (MIT licence) from the npm package @lobehub/fluent-emoji-3d. The training fetches
the package; the pictures are not part of this repository.
"""

import hashlib
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from PIL import Image

from minip2p.tiny.draw import rgb
from minip2p.tiny.scenes import COLOURS, THINGS, Thing

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
TARBALL = "lobehub-fluent-emoji-3d-1.1.0.tgz"
SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"

CODEPOINTS = MappingProxyType(
    {  # object -> the Unicode code points of its emoji, which name its file
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
COLOUR_RGB = MappingProxyType(
    {
        "red": (218, 28, 36),
        "orange": (250, 128, 14),
        "yellow": (250, 212, 30),
        "green": (38, 160, 58),
        "blue": (32, 98, 226),
        "purple": (124, 48, 184),
        "pink": (250, 132, 190),
    }
)

# The range of hues (first and last, in degrees) that is repainted. Leaves, windows, strings and handles lie outside.
PAINTED_HUES = MappingProxyType({"umbrella": (225, 300), "backpack": (290, 25), "tulip": (270, 360), "hat": (10, 70)})
DEFAULT_PAINTED_HUES = (290, 70)


def hue_saturation(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in degrees and saturation in [0, 1] of colours (..., 3) in [0, 1]."""
    r, g, b = np.moveaxis(colours, -1, 0)
    top, span = colours.max(-1), np.ptp(colours, -1)
    safe = np.maximum(span, 1e-6)
    sector = np.select([top == r, top == g], [(g - b) / safe, 2 + (b - r) / safe], 4 + (r - g) / safe)
    return 60 * sector % 360, span / np.maximum(top, 1e-6)


def paint_sprite(sprite: np.ndarray, name: str, colour: str) -> np.ndarray:
    """Repaints a sprite (h, w, 4) uint8: the median tone of its painted part becomes the colour, and shading stays."""
    pixels, alpha = sprite[..., :3].astype(np.float32) / 255, sprite[..., 3:]
    hue, saturation = hue_saturation(pixels)
    first, last = PAINTED_HUES.get(name, DEFAULT_PAINTED_HUES)
    in_range = (hue - first) % 360 <= (last - first) % 360
    weight = (in_range * np.clip((saturation - 0.1) / 0.12, 0, 1))[..., None]
    tone = pixels.max(-1, keepdims=True) * 0.5 + pixels.mean(-1, keepdims=True) * 0.5
    painted = (weight > 0.5) & (alpha > 128)
    tone = tone / (np.median(tone[painted]) if painted.any() else 1)
    light = np.clip((tone - 1) * 1.1, 0, 0.5)
    shaded = rgb(COLOUR_RGB[colour]) * np.clip(tone, 0, 1)
    repainted = pixels + (shaded + (1 - shaded) * light - pixels) * weight
    return np.concatenate([(np.clip(repainted, 0, 1) * 255).round().astype(np.uint8), alpha], -1)


def shrink_sprite(sprite: np.ndarray, side: int = 112) -> np.ndarray:
    """A sprite cropped to its opaque box, its longer side at most `side` pixels, so that later resizing is quick."""
    image = Image.fromarray(sprite).crop(Image.fromarray(sprite[..., 3]).getbbox())
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


class Sprites:
    """The sprites of all objects in all their colours, from RGBA arrays (h, w, 4) uint8 by object name."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        small = {name: shrink_sprite(array) for name, array in arrays.items()}
        self.images = MappingProxyType(
            {
                (name, colour): Image.fromarray(paint_sprite(sprite, name, colour) if colour else sprite)
                for name, sprite in small.items()
                for colour in (COLOURS if name in THINGS else (None,))
            }
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the objects from the npm package's tarball. Raises ValueError if it, or an object in it, is missing."""
        if not Path(path).is_file():
            raise ValueError(f"no sprites at {path}: get them with minip2p.tiny.sprites.fetch_sprites(folder)")
        members = {f"package/assets/{code}.webp": name for name, code in CODEPOINTS.items()}
        arrays = {}
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name in members and (file := tar.extractfile(member)):
                    arrays[members[member.name]] = np.asarray(Image.open(file).convert("RGBA"))
        if missing := sorted(CODEPOINTS.keys() - arrays):
            raise ValueError(f"{path} lacks the sprites of {', '.join(missing)}; expected {PACKAGE}")
        return cls(arrays)

    def image(self, thing: Thing) -> Image.Image:
        """The sprite of an object at its size, RGBA. Raises ValueError if there is no such sprite."""
        if (thing.name, thing.colour) not in self.images:
            raise ValueError(f"no sprite of a {thing.colour or 'plain'} {thing.name} among those loaded")
        sprite = self.images[thing.name, thing.colour]
        scale = thing.size / max(sprite.size)
        # Pillow premultiplies alpha when it resizes RGBA, so no colour bleeds in from transparent pixels.
        sprite = sprite.resize([max(1, round(side * scale)) for side in sprite.size], Image.Resampling.LANCZOS)
        return sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if thing.flip else sprite


def fetch_sprites(folder: str | Path) -> Path:
    """The path of the tarball in a folder. `npm pack` fetches it if it is not there.

    Raises ValueError if it cannot be fetched, or if its SHA-256 differs.
    """
    path = Path(folder) / TARBALL
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", PACKAGE, "--pack-destination", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            raise ValueError(f"{path} is missing, and {' '.join(command[:3])} could not fetch it: {why}") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{path} is not {PACKAGE}: its sha256 differs; delete it and fetch again")
    return path
