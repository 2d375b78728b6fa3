"""Paints the tiny world except its objects: backgrounds, graded attributes (fog, flowers, snow) and styles.

Pictures are float32 arrays H W 3 in [0, 1]; colours are written as triples of 0 … 255. All shapes are soft and all
textures slow waves: pixel noise would take much of the autoencoder's capacity.

Axes: H W height and width of a picture (both `SIZE`). y counts rows from the top, x columns from the left.
"""

from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from minip2p.tiny.scenes import SIZE

BACKGROUND_RGB = MappingProxyType(
    {  # sky at the top, sky at the horizon, ground at the horizon, ground at the bottom
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
PETALS_RGB = ((255, 255, 255), (255, 120, 170), (230, 60, 70), (170, 110, 230))


def rgb(colour) -> np.ndarray:
    """A triple of 0 … 255 as float32 (3,) in [0, 1]."""
    return np.asarray(colour, np.float32) / 255


def blend_colour(picture: np.ndarray, colour, weight: np.ndarray) -> np.ndarray:
    """Blends a colour (a triple of 0 … 255) into a picture H W 3; the weight broadcasts to H W."""
    return picture + (rgb(colour) - picture) * weight[..., None]


def pixel_coordinates() -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates: y (SIZE, 1) and x (1, SIZE)."""
    indices = np.arange(SIZE, dtype=np.float32)
    return indices[:, None], indices[None]


def slow_wave(rng: np.random.Generator, x: np.ndarray, periods=(1.3, 2.6)) -> np.ndarray:
    """A slow curve in [-1, 1] over x: the mean of sines with these numbers of periods across the picture."""
    phases = rng.uniform(0, 2 * np.pi, len(periods)).tolist()
    sines = (np.sin(2 * np.pi * n * x / SIZE + p) for n, p in zip(periods, phases, strict=True))
    return sum(sines) / len(periods)


def below_line(line: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coverage, H W in [0, 1], of the pixels below the curve y = line(x), anti-aliased over one pixel."""
    return np.clip(y - line + 0.5, 0, 1, dtype=np.float32)


def soft_ellipse(x0: float, y0: float, rx: float, ry: float) -> np.ndarray:
    """A Gaussian bump, H W: 1 at its centre (x0, y0), with radii rx and ry."""
    y, x = pixel_coordinates()
    return np.exp(-(((x - x0) / rx) ** 2)) * np.exp(-(((y - y0) / ry) ** 2))


def draw_discs(picture: np.ndarray, discs) -> np.ndarray:
    """Paints anti-aliased discs (x, y, radius, colour, opacity) on a picture, in order."""
    factor = 3  # of supersampling
    shapes = Image.new("RGBA", (SIZE * factor, SIZE * factor))
    pen = ImageDraw.Draw(shapes)
    for x, y, r, colour, opacity in discs:
        box = [factor * (x - r), factor * (y - r), factor * (x + r), factor * (y + r)]
        pen.ellipse(box, fill=(*colour, round(255 * opacity)))
    layer = np.asarray(shapes.convert("RGBa").reduce(factor), np.float32) / 255
    return picture * (1 - layer[..., 3:]) + layer[..., :3]


def spread_points(rng: np.random.Generator, n: int) -> np.ndarray:
    """n points in the unit square, (2, n), that rarely come close: the R2 sequence with a random start."""
    steps = np.array([[0.7549], [0.5698]])  # 1/g and 1/g² for the plastic number g, the golden ratio of the plane
    return (np.arange(n) * steps + rng.random((2, 1))) % 1


def ground_points(rng: np.random.Generator, n: int, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """n points (x, y) on the ground that rarely come close."""
    u, v = spread_points(rng, n)
    return 3 + u * (SIZE - 6), horizon + 6 + v * (SIZE - horizon - 10)


def flower_discs(rng: np.random.Generator, n: int, horizon: float, radius: float, count: float = np.inf):
    """The discs of n flowers, two each: petals and centre. The first `count` are visible, the last of them in part."""
    xs, ys = ground_points(rng, n, horizon)
    colours = rng.integers(len(PETALS_RGB), size=n)
    for i, (x, y, colour) in enumerate(zip(xs, ys, colours, strict=True)):
        opacity = min(max(count - i, 0), 1)
        r = radius * (0.75 + 0.5 * (y - horizon) / (SIZE - horizon))
        yield from ((x, y, r, PETALS_RGB[colour], opacity), (x, y, 0.42 * r, (255, 210, 40), opacity))


def background(name: str, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """A picture of an empty place, H W 3, with its horizon at that row."""
    y, x = pixel_coordinates()
    sky_top, sky_low, ground_far, ground_near = (rgb(c) for c in BACKGROUND_RGB[name])
    sky = sky_top + (sky_low - sky_top) * np.clip(y / horizon, 0, 1)[..., None]
    ground = ground_far + (ground_near - ground_far) * np.clip((y - horizon) / (SIZE - horizon), 0, 1)[..., None]
    ground = ground * (1 + 0.03 * slow_wave(rng, x + 1.7 * y))[..., None]
    scenery = add_scenery(name, np.broadcast_to(sky, (SIZE, SIZE, 3)), horizon, rng)
    relief = {"desert": 3, "snow": 2.5, "meadow": 2.5, "grass": 1}.get(name, 0)
    cover = below_line(horizon + relief * slow_wave(rng, x), y)[..., None]
    return add_ground_details(name, scenery + (ground - scenery) * cover, horizon, rng)


def add_scenery(name: str, sky: np.ndarray, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """Adds what is at the horizon and in the sky: clouds, hills, houses, stars."""
    y, x = pixel_coordinates()
    if name in ("grass", "sea"):
        for _ in range(2):
            x0, y0 = rng.uniform(0, SIZE), rng.uniform(0.15, 0.6) * horizon
            sky = blend_colour(sky, (255, 255, 255), 0.75 * soft_ellipse(x0, y0, rng.uniform(14, 26), 5))
    if name == "grass":
        return blend_colour(sky, (44, 112, 52), below_line(horizon - 6 - 3 * slow_wave(rng, x, (4, 7)), y))
    if name == "beach":
        return blend_colour(
            blend_colour(sky, (28, 150, 190), below_line(np.full_like(x, horizon - 14), y)),
            (96, 210, 214),
            np.clip((y - horizon + 14) / 16, 0, 1),
        )
    if name == "snow":
        feet = (np.arange(7) + rng.uniform(0.1, 0.9, 7)) * SIZE / 7
        firs = (rng.uniform(9, 20, 7)[:, None] - 2.4 * np.abs(x - feet[:, None])).max(0)
        return blend_colour(sky, (96, 132, 140), below_line(horizon - firs[None], y))
    if name == "desert":
        sun = draw_discs(sky, [(rng.uniform(15, 113), 0.4 * horizon, 8, (255, 246, 214), 1)])
        return blend_colour(sun, (214, 136, 84), below_line(horizon - 7 - 7 * slow_wave(rng, x, (1.1, 1.9)), y))
    if name == "night":
        stars = [
            (*at, rng.uniform(0.8, 1.4), (255, 250, 220), 0.9)
            for at in rng.uniform((3, 3), (SIZE - 3, horizon - 8), (12, 2))
        ]
        moon = (rng.uniform(15, 113), 0.35 * horizon, 8, (250, 244, 206), 1)
        return blend_colour(
            draw_discs(sky, [*stars, moon]), (22, 26, 58), below_line(horizon - 5 - 4 * slow_wave(rng, x), y)
        )
    if name == "street":
        houses = np.repeat(rng.uniform(14, 38, 8), SIZE // 8).astype(np.float32)[None]
        return blend_colour(sky, (142, 148, 166), below_line(horizon - houses, y))
    if name == "meadow":
        return blend_colour(sky, (132, 180, 130), below_line(horizon - 9 - 6 * slow_wave(rng, x, (0.9, 1.7)), y))
    return sky


def add_ground_details(name: str, picture: np.ndarray, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """Adds what is on the ground: surf, a kerb and lane marks, waves, flowers."""
    y, x = pixel_coordinates()
    depth = y - horizon
    if name == "beach":
        return blend_colour(picture, (255, 255, 255), np.exp(-(((depth - 1.5 * slow_wave(rng, x, (2, 3))) / 2) ** 2)))
    if name == "street":
        kerb = below_line(np.full_like(x, horizon + 1), y) - below_line(np.full_like(x, horizon + 6), y)
        lane = horizon + 0.55 * (SIZE - horizon)
        dash = np.clip(12 - np.abs((x + rng.uniform(0, 42)) % 42 - 21), 0, 1)
        picture = blend_colour(picture, (190, 188, 184), kerb)
        return blend_colour(picture, (246, 244, 236), dash * np.clip(2.5 - np.abs(y - lane), 0, 1))
    if name == "sea":
        swell = np.sin(9 * np.sqrt(np.maximum(depth, 0) / 4) + 1.2 * slow_wave(rng, x, (2, 3)))
        return blend_colour(picture, (190, 226, 244), (depth > 0) * (0.13 + 0.13 * swell))
    if name == "meadow":
        return draw_discs(picture, flower_discs(rng, 9, horizon, 2.2))
    return picture


def with_flowers(picture: np.ndarray, strength: float, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """Flowers on the ground: none at strength 0, 44 at strength 1."""
    return draw_discs(picture, flower_discs(rng, 44, horizon, 3.6, 44 * strength))


def with_fog(picture: np.ndarray, strength: float, near: np.ndarray) -> np.ndarray:
    """Fog of a strength in [0, 1]. It is thinner over near objects, whose opacity is `near`, H W in [0, 1]."""
    return blend_colour(picture, (214, 218, 224), strength * (0.86 - 0.3 * near))


def with_snow(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Falling snowflakes in front of everything: none at strength 0, 56 at strength 1."""
    n = 56
    xs, ys = spread_points(rng, n) * SIZE
    visible = np.clip(n * strength - np.arange(n), 0, 1)
    radii = rng.uniform(1.5, 2.7, n)
    return draw_discs(picture, zip(xs, ys, radii, [(255, 255, 255)] * n, 0.95 * visible, strict=True))


def blur(picture: np.ndarray, radius: float) -> np.ndarray:
    """A picture H W 3 blurred by a Gaussian of that radius, in pixels."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def as_sketch(picture: np.ndarray) -> np.ndarray:
    """The picture as a pencil drawing on light paper: pale grey tones, and dark lines where the colour changes."""
    smooth = np.pad(blur(picture, 0.6), ((1, 1), (1, 1), (0, 0)), mode="edge")
    slope = np.hypot(smooth[2:, 1:-1] - smooth[:-2, 1:-1], smooth[1:-1, 2:] - smooth[1:-1, :-2]).max(-1)
    tone = 0.66 + 0.31 * picture @ np.array([0.3, 0.59, 0.11], np.float32)
    drawn = tone * (1 - 0.8 * np.clip(1.6 * slope - 0.06, 0, 1))
    return np.repeat(drawn[..., None], 3, -1)


def as_watercolor(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture in watercolour: pale washes with darker edges, uneven pigment, and a border of bare paper."""
    y, x = pixel_coordinates()
    wash = blur(picture, 0.9)
    wash = wash + 0.35 * np.minimum(wash - blur(picture, 3), 0)  # washes dry darker at their edges
    wash = wash - 0.6 * np.sin(8 * np.pi * wash) / (8 * np.pi)  # a soft staircase of four washes
    pigment = Image.fromarray(rng.uniform(-1, 1, (7, 7)).astype(np.float32)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    water = np.clip(0.34 + 0.16 * np.asarray(pigment), 0, 1)
    border = np.minimum(np.minimum(x, SIZE - 1 - x), np.minimum(y, SIZE - 1 - y)) + 2 * slow_wave(rng, x + y, (3, 5))
    return blend_colour(
        blend_colour(wash, (252, 248, 238), water), (252, 248, 238), np.clip(1 - (border - 1) / 5, 0, 1)
    )
