"""Images to look at: heat maps over an image, masks, and contact sheets of panels with captions."""

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

Panel = tuple[Image.Image, str]  # an image and its caption

# Six evenly spaced colours of matplotlib's "inferno". Its lightness rises evenly, so brighter means more, also when it
# is printed in grey or seen by a colour-blind reader.
INFERNO = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


def heat_colours(heat: ArrayLike) -> np.ndarray:
    """Heat h w in [0, 1] -> colours h w 3, uint8: dark where it is 0, bright where it is 1."""
    values = np.asarray(heat, dtype=float)
    stops = np.linspace(0, 1, len(INFERNO))
    channels = [np.interp(values, stops, channel) for channel in zip(*INFERNO, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay(image: Image.Image, heat: ArrayLike, opacity: float = 0.65, *, maximum: float | None = None) -> Image.Image:
    """A heat map over a grey version of an image, at the image's size.

    heat: h w, from 0 up. opacity: of the heat map, from 0 to 1. maximum: the value of the brightest colour, the same
    for maps that are to be compared; None is the map's own maximum.
    """
    values = np.asarray(heat, dtype=float)
    top = values.max() if maximum is None else maximum
    colours = Image.fromarray(heat_colours(values / max(top, 1e-12)))
    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, colours.resize(image.size, Image.Resampling.BILINEAR), opacity)


def mask_image(mask: ArrayLike, size: tuple[int, int]) -> Image.Image:
    """A mask h w in [0, 1] as an image, white where it is 1; enlarged without smoothing, so its pixels stay visible.

    size: (columns, rows) of the image.
    """
    grey = Image.fromarray((np.asarray(mask, dtype=np.float32) * 255).round().astype(np.uint8))
    return grey.resize(size, Image.Resampling.NEAREST).convert("RGB")


def enlarge(image: Image.Image, min_side: int = 256) -> Image.Image:
    """The image enlarged by the smallest whole factor that makes its shorter side at least `min_side` pixels."""
    factor = -(-min_side // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)


def grid(panels: Sequence[Panel], columns: int, min_side: int = 256, *, title: str = "") -> Image.Image:
    """A contact sheet: the panels row by row, each enlarged to `min_side` pixels, with its caption below it.

    title: a text above all panels. All cells are as large as the largest image. A row is as high as its longest
    caption requires.
    """
    images = [enlarge(image, min_side) for image, _ in panels]
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    gap = width // 32
    font_size = max(width // 19, 12)
    font = ImageFont.load_default(font_size)
    line_length = int(width / font.getlength("n"))
    captions = [textwrap.wrap(caption, line_length) for _, caption in panels]

    row_starts = range(0, len(panels), columns)
    line_counts = [max(map(len, captions[n : n + columns])) for n in row_starts]
    row_heights = [height + lines * font_size * 5 // 4 + 2 * gap for lines in line_counts]
    sheet_width = min(columns, len(panels)) * (width + gap) + gap
    title_lines = textwrap.wrap(title, int((sheet_width - 2 * gap) / font.getlength("n")))
    top = (len(title_lines) * font_size * 5 // 4 + gap if title_lines else 0) + gap
    sheet = Image.new("RGB", (sheet_width, sum(row_heights) + top), "white")
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((gap, gap), "\n".join(title_lines), "black", font, spacing=font_size // 4)
    for n, (image, lines) in enumerate(zip(images, captions, strict=True)):
        x = gap + n % columns * (width + gap)
        y = top + sum(row_heights[: n // columns])
        sheet.paste(image, (x, y))
        draw.rectangle((x - 1, y - 1, x + image.width, y + image.height), outline="silver")
        draw.multiline_text((x, y + height + gap // 4), "\n".join(lines), "black", font, spacing=font_size // 4)
    return sheet
