"""Pictures to look at: panels with captions side by side, and heat maps over a picture."""

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

Panel = tuple[Image.Image, str]  # a picture and its caption


# Six colours of matplotlib's "inferno", evenly spaced: its lightness rises evenly, so that brighter means more, also
# in grey and to the colour-blind.
INFERNO = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


def heat_colours(heat: ArrayLike) -> np.ndarray:
    """Heat h w in [0, 1] -> colours h w 3, uint8: dark where it is 0, bright where it is 1."""
    values, stops = np.asarray(heat, dtype=float), np.linspace(0, 1, len(INFERNO))
    channels = [np.interp(values, stops, channel) for channel in zip(*INFERNO, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay(picture: Image.Image, heat: ArrayLike, strength: float = 0.65) -> Image.Image:
    """A heat map over a picture in grey. heat: h w, any scale from 0; its own maximum is the brightest colour."""
    values = np.asarray(heat, dtype=float)
    colours = Image.fromarray(heat_colours(values / max(values.max(), 1e-12)))
    return Image.blend(
        picture.convert("L").convert("RGB"), colours.resize(picture.size, Image.Resampling.BILINEAR), strength
    )


def mask_picture(mask: ArrayLike, size: tuple[int, int]) -> Image.Image:
    """A mask h w in [0, 1] as a picture of so many columns and rows, white where it is 1. Its pixels stay visible."""
    grey = Image.fromarray((np.asarray(mask, dtype=np.float32) * 255).round().astype(np.uint8))
    return grey.resize(size, Image.Resampling.NEAREST).convert("RGB")


def enlarge(picture: Image.Image, least: int = 256) -> Image.Image:
    """The picture a whole number of times as large, so that its shorter side has `least` pixels; never smaller."""
    times = -(-least // min(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.LANCZOS)


def grid(panels: Sequence[Panel], columns: int, least: int = 256) -> Image.Image:
    """Panels, row after row, each enlarged to `least` pixels and with its caption under it.

    All cells are as large as the largest picture; a row has room for its longest caption, and none where it has none.
    """
    large = [enlarge(picture, least) for picture, _ in panels]
    width, height = max(picture.width for picture in large), max(picture.height for picture in large)
    gap, size = width // 32, max(width // 19, 12)
    font = ImageFont.load_default(size)
    letters = int(width / font.getlength("n"))
    texts = [textwrap.wrap(caption, letters) for _, caption in panels]
    starts = range(0, len(panels), columns)
    heights = [height + max(map(len, texts[n : n + columns])) * size * 5 // 4 + 2 * gap for n in starts]
    sheet = Image.new("RGB", (min(columns, len(panels)) * (width + gap) + gap, sum(heights) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for n, (picture, lines) in enumerate(zip(large, texts, strict=True)):
        x, y = gap + n % columns * (width + gap), gap + sum(heights[: n // columns])
        sheet.paste(picture, (x, y))
        draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline="silver")
        draw.multiline_text((x, y + height + gap // 4), "\n".join(lines), "black", font, spacing=size // 4)
    return sheet
