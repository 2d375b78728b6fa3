"""How the tiny world is painted: backgrounds, graded attributes, styles, and the colours of things.

Pictures are float32 (height, width, 3) in [0, 1]; colours are written as 0..255 triples. Everything is a soft shape or
a slow wave: noise in single pixels would cost the autoencoder more than it is worth.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128


PAINT = MappingProxyType(
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


# The hues (degrees) that take the paint; leaves, windows, strings and handles keep their own.
WARM = (290, 70)


PAINTED_HUES = MappingProxyType({"umbrella": (225, 300), "backpack": (290, 25), "tulip": (270, 360), "hat": (10, 70)})


# sky at the top, sky at the horizon, ground at the horizon, ground at the bottom
LAND = MappingProxyType(
    {
        "grass": ((84, 160, 236), (200, 228, 250), (104, 182, 62), (52, 130, 36)),
        "beach": ((84, 190, 246), (214, 240, 250), (248, 228, 176), (228, 196, 132)),
        "snow": ((136, 170, 212), (208, 222, 240), (248, 251, 255), (212, 224, 242)),
        "desert": ((250, 176, 84), (255, 230, 176), (226, 152, 78), (186, 106, 46)),
        "night": ((12, 14, 46), (46, 46, 106), (30, 46, 52), (12, 20, 28)),
        "street": ((168, 182, 200), (216, 222, 228), (112, 114, 120), (76, 78, 84)),
        "meadow": ((150, 206, 242), (240, 242, 226), (206, 214, 100), (140, 180, 62)),
        "sea": ((120, 182, 232), (228, 238, 242), (48, 132, 200), (10, 58, 128)),
    }
)


PETALS = ((255, 255, 255), (255, 120, 170), (230, 60, 70), (170, 110, 230))


def rgb(colour) -> np.ndarray:
    """A 0..255 triple as float32 (3,) in [0, 1]."""
    return np.asarray(colour, np.float32) / 255


def mix(picture: np.ndarray, colour, weight: np.ndarray) -> np.ndarray:
    """Lay a colour (0..255 triple) over a picture (h, w, 3); weight broadcasts to (h, w)."""
    return picture + (rgb(colour) - picture) * weight[..., None]


def axes() -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates y (SIZE, 1) and x (1, SIZE)."""
    ramp = np.arange(SIZE, dtype=np.float32)
    return ramp[:, None], ramp[None]


def wave(rng: np.random.Generator, x: np.ndarray, periods=(1.3, 2.6)) -> np.ndarray:
    """A slow curve in [-1, 1]: one sine for each number of periods across the picture."""
    phases = rng.uniform(0, 2 * np.pi, len(periods)).tolist()
    sines = (np.sin(2 * np.pi * n * x / SIZE + p) for n, p in zip(periods, phases, strict=True))
    return sum(sines) / len(periods)


def below_line(line: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coverage (h, w) of the pixels under a line y = line(x), smooth over one pixel."""
    return np.clip(y - line + 0.5, 0, 1, dtype=np.float32)


def glow(x0: float, y0: float, rx: float, ry: float) -> np.ndarray:
    """A soft ellipse (h, w): one at its centre, fading like a Gaussian."""
    y, x = axes()
    return np.exp(-(((x - x0) / rx) ** 2)) * np.exp(-(((y - y0) / ry) ** 2))


def discs(picture: np.ndarray, spots) -> np.ndarray:
    """Paint smooth discs (x, y, radius, colour, opacity), in order, on a picture."""
    fine = 3
    shapes = Image.new("RGBA", (SIZE * fine, SIZE * fine))
    pen = ImageDraw.Draw(shapes)
    for x, y, r, colour, opacity in spots:
        box = [fine * (x - r), fine * (y - r), fine * (x + r), fine * (y + r)]
        pen.ellipse(box, fill=(*colour, round(255 * opacity)))
    layer = np.asarray(shapes.convert("RGBa").reduce(fine), np.float32) / 255
    return picture * (1 - layer[..., 3:]) + layer[..., :3]


def ground_spots(rng: np.random.Generator, n: int, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """n places (x, y) on the ground, spread like a jittered sequence so that they rarely touch."""
    turn = np.arange(n) * np.array([[0.7549], [0.5698]]) + rng.random((2, 1))  # the plane's golden ratio
    u, v = turn % 1
    return 3 + u * (SIZE - 6), horizon + 6 + v * (SIZE - horizon - 10)


def flowers(rng: np.random.Generator, n: int, horizon: float, radius: float, count: float = np.inf):
    """Spots of up to n flowers, petals and centre; the first `count` are shown, the last in part."""
    xs, ys = ground_spots(rng, n, horizon)
    kinds = rng.integers(len(PETALS), size=n)
    for i, (x, y, kind) in enumerate(zip(xs, ys, kinds, strict=True)):
        seen = min(max(count - i, 0), 1)
        r = radius * (0.75 + 0.5 * (y - horizon) / (SIZE - horizon))
        yield from ((x, y, r, PETALS[kind], seen), (x, y, 0.42 * r, (255, 210, 40), seen))


def background(name: str, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """A place (SIZE, SIZE, 3) with its horizon at that row."""
    y, x = axes()
    top, low, near, bottom = (rgb(c) for c in LAND[name])
    sky = top + (low - top) * np.clip(y / horizon, 0, 1)[..., None]
    ground = near + (bottom - near) * np.clip((y - horizon) / (SIZE - horizon), 0, 1)[..., None]
    ground = ground * (1 + 0.03 * wave(rng, x + 1.7 * y))[..., None]
    far = behind(name, np.broadcast_to(sky, (SIZE, SIZE, 3)), horizon, rng)
    relief = {"desert": 3, "snow": 2.5, "meadow": 2.5, "grass": 1}.get(name, 0)
    cover = below_line(horizon + relief * wave(rng, x), y)[..., None]
    return in_front(name, far + (ground - far) * cover, horizon, rng)


def behind(name: str, sky: np.ndarray, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """What stands at the horizon or in the sky."""
    y, x = axes()
    if name in ("grass", "sea"):
        for _ in range(2):
            x0, y0 = rng.uniform(0, SIZE), rng.uniform(0.15, 0.6) * horizon
            sky = mix(sky, (255, 255, 255), 0.75 * glow(x0, y0, rng.uniform(14, 26), 5))
    if name == "grass":
        return mix(sky, (44, 112, 52), below_line(horizon - 6 - 3 * wave(rng, x, (4, 7)), y))
    if name == "beach":
        return mix(
            mix(sky, (28, 150, 190), below_line(np.full_like(x, horizon - 14), y)),
            (96, 210, 214),
            np.clip((y - horizon + 14) / 16, 0, 1),
        )
    if name == "snow":
        feet = (np.arange(7) + rng.uniform(0.1, 0.9, 7)) * SIZE / 7
        firs = (rng.uniform(9, 20, 7)[:, None] - 2.4 * np.abs(x - feet[:, None])).max(0)
        return mix(sky, (96, 132, 140), below_line(horizon - firs[None], y))
    if name == "desert":
        sun = discs(sky, [(rng.uniform(15, 113), 0.4 * horizon, 8, (255, 246, 214), 1)])
        return mix(sun, (214, 136, 84), below_line(horizon - 7 - 7 * wave(rng, x, (1.1, 1.9)), y))
    if name == "night":
        stars = [
            (*at, rng.uniform(0.8, 1.4), (255, 250, 220), 0.9)
            for at in rng.uniform((3, 3), (SIZE - 3, horizon - 8), (12, 2))
        ]
        moon = (rng.uniform(15, 113), 0.35 * horizon, 8, (250, 244, 206), 1)
        return mix(discs(sky, [*stars, moon]), (22, 26, 58), below_line(horizon - 5 - 4 * wave(rng, x), y))
    if name == "street":
        houses = np.repeat(rng.uniform(14, 38, 8), SIZE // 8).astype(np.float32)[None]
        return mix(sky, (142, 148, 166), below_line(horizon - houses, y))
    if name == "meadow":
        return mix(sky, (132, 180, 130), below_line(horizon - 9 - 6 * wave(rng, x, (0.9, 1.7)), y))
    return sky


def in_front(name: str, picture: np.ndarray, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """What lies on the ground."""
    y, x = axes()
    depth = y - horizon
    if name == "beach":
        return mix(picture, (255, 255, 255), np.exp(-(((depth - 1.5 * wave(rng, x, (2, 3))) / 2) ** 2)))
    if name == "street":
        kerb = below_line(np.full_like(x, horizon + 1), y) - below_line(np.full_like(x, horizon + 6), y)
        lane = horizon + 0.55 * (SIZE - horizon)
        dash = np.clip(12 - np.abs((x + rng.uniform(0, 42)) % 42 - 21), 0, 1)
        picture = mix(picture, (190, 188, 184), kerb)
        return mix(picture, (246, 244, 236), dash * np.clip(2.5 - np.abs(y - lane), 0, 1))
    if name == "sea":
        swell = np.sin(9 * np.sqrt(np.maximum(depth, 0) / 4) + 1.2 * wave(rng, x, (2, 3)))
        return mix(picture, (190, 226, 244), (depth > 0) * (0.13 + 0.13 * swell))
    if name == "meadow":
        return discs(picture, flowers(rng, 9, horizon, 2.2))
    return picture


def with_flowers(picture: np.ndarray, strength: float, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """Flowers on the ground, more of them as strength goes from 0 to 1."""
    return discs(picture, flowers(rng, 44, horizon, 3.6, 44 * strength))


def with_fog(picture: np.ndarray, strength: float, near: np.ndarray) -> np.ndarray:
    """Fog of that strength in [0, 1], thinner over what is near: a map (h, w) in [0, 1]."""
    return mix(picture, (214, 218, 224), strength * (0.86 - 0.3 * near))


def with_snow(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Falling flakes before everything, more of them as strength goes from 0 to 1."""
    n = 56
    turn = (np.arange(n) * np.array([[0.7549], [0.5698]]) + rng.random((2, 1))) % 1 * SIZE
    seen = np.clip(n * strength - np.arange(n), 0, 1)
    return discs(picture, zip(*turn, rng.uniform(1.5, 2.7, n), [(255, 255, 255)] * n, 0.95 * seen, strict=True))


def blur(picture: np.ndarray, radius: float) -> np.ndarray:
    """A picture (h, w, 3) under a Gaussian of that radius in pixels."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def sketch(picture: np.ndarray) -> np.ndarray:
    """Pencil on light paper: pale grey tones, dark lines where the colour changes."""
    smooth = np.pad(blur(picture, 0.6), ((1, 1), (1, 1), (0, 0)), mode="edge")
    slope = np.hypot(smooth[2:, 1:-1] - smooth[:-2, 1:-1], smooth[1:-1, 2:] - smooth[1:-1, :-2]).max(-1)
    tone = 0.66 + 0.31 * picture @ np.array([0.3, 0.59, 0.11], np.float32)
    drawn = tone * (1 - 0.8 * np.clip(1.6 * slope - 0.06, 0, 1))
    return np.repeat(drawn[..., None], 3, -1)


def watercolor(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pale washes that pool at their edges, uneven pigment, and bare paper round the sheet."""
    y, x = axes()
    wash = blur(picture, 0.9)
    wash = wash + 0.35 * np.minimum(wash - blur(picture, 3), 0)  # wet edges dry darker
    wash = wash - 0.6 * np.sin(8 * np.pi * wash) / (8 * np.pi)  # a soft staircase of four washes
    pigment = Image.fromarray(rng.uniform(-1, 1, (7, 7)).astype(np.float32)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    water = np.clip(0.34 + 0.16 * np.asarray(pigment), 0, 1)
    border = np.minimum(np.minimum(x, SIZE - 1 - x), np.minimum(y, SIZE - 1 - y)) + 2 * wave(rng, x + y, (3, 5))
    return mix(mix(wash, (252, 248, 238), water), (252, 248, 238), np.clip(1 - (border - 1) / 5, 0, 1))


def hue_saturation(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in degrees and saturation in [0, 1] of colours (..., 3) in [0, 1]."""
    r, g, b = np.moveaxis(colours, -1, 0)
    top, span = colours.max(-1), np.ptp(colours, -1)
    safe = np.maximum(span, 1e-6)
    sector = np.select([top == r, top == g], [(g - b) / safe, 2 + (b - r) / safe], 4 + (r - g) / safe)
    return 60 * sector % 360, span / np.maximum(top, 1e-6)


def paint_sprite(sprite: np.ndarray, name: str, colour: str) -> np.ndarray:
    """A sprite (h, w, 4) uint8 whose painted part takes a colour: its median tone becomes the colour, shading stays."""
    pixels, alpha = sprite[..., :3].astype(np.float32) / 255, sprite[..., 3:]
    hue, saturation = hue_saturation(pixels)
    first, last = PAINTED_HUES.get(name, WARM)
    inside = (hue - first) % 360 <= (last - first) % 360
    weight = (inside * np.clip((saturation - 0.1) / 0.12, 0, 1))[..., None]
    tone = pixels.max(-1, keepdims=True) * 0.5 + pixels.mean(-1, keepdims=True) * 0.5
    part = (weight > 0.5) & (alpha > 128)
    tone = tone / (np.median(tone[part]) if part.any() else 1)
    light = np.clip((tone - 1) * 1.1, 0, 0.5)
    shaded = rgb(PAINT[colour]) * np.clip(tone, 0, 1)
    new = pixels + (shaded + (1 - shaded) * light - pixels) * weight
    return np.concatenate([(np.clip(new, 0, 1) * 255).round().astype(np.uint8), alpha], -1)
