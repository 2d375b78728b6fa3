"""Decoding picture files: all formats that Pillow reads, HEIC through pillow-heif, and photographs of any size."""

import math
import threading
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from minip2p.io.contents import AVIF_BRANDS, HEIC_BRANDS, JPEG_XL_STARTS, first_bytes, not_a_picture

# A file of a few kilobytes may unpack into more memory than there is. Phones make pictures of 200 million pixels.
MAX_PIXELS = 2**28
# A larger picture is reduced by a whole factor while it is read. The models take a hundredth of this.
MAX_DECODED_PIXELS = 90_000_000
OPENING = threading.Lock()  # held while Pillow's limit of pixels is changed

# TIFF tags.
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, DNG_VERSION = 254, 258, 50706


class UnreadableImageError(ValueError):
    """Why a file is not a picture that can be read: the rest of a line that begins with the file's name."""


def decode(path: Path, max_pixels: int | None = None) -> Image.Image:
    """The main picture of a file as Pillow holds it, not yet turned upright, with at most `MAX_DECODED_PIXELS` pixels.

    Of a file with several frames it is the first, or the one that the file calls its primary picture. max_pixels: of a
    picture that is read at all; None is `MAX_PIXELS`.
    Raises UnreadableImageError, and the errors of many types that the decoders raise for broken files.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL|pillow_heif")
        try:
            # Not by its name: Pillow 13.0 maps a named TIFF into memory, and shears a grey one that is to be rotated.
            with path.open("rb") as file, open_file(file, limit) as image:
                refuse_thumbnail(image)
                factor = reducing_factor(image.size)
                if factor > 1:  # JPEG files are decoded at 1/2, 1/4 or 1/8, which takes less memory and time
                    image.draft(None, (image.width // factor, image.height // factor))
                image.load()
                image = widen_12_bits(image)
        except UnidentifiedImageError:
            image = decode_unidentified(path, limit)
        except Image.DecompressionBombError:
            raise UnreadableImageError(too_many_pixels(limit)) from None
        return reduced(image, reducing_factor(image.size))


def open_file(file: BinaryIO, max_pixels: int, formats: tuple[str, ...] | None = None) -> Image.Image:
    """`Image.open` with another limit than Pillow's, which is lower than a phone's pictures. formats: None for all."""
    with OPENING:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels // 2  # Pillow warns beyond this, and raises an error beyond its double
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def too_many_pixels(limit: int) -> str:
    return f"has more than {limit:,} pixels; scale it down first"


def refuse_thumbnail(image: Image.Image) -> None:
    """Raises UnreadableImageError for the raw file of a camera, of which Pillow shows the thumbnail."""
    tags = getattr(image, "tag_v2", {})
    if DNG_VERSION in tags or tags.get(NEW_SUBFILE_TYPE, 0) & 1:
        raise UnreadableImageError(
            "is a camera's raw file, of which only the thumbnail can be read; export it as JPEG or PNG"
        )


def widen_12_bits(image: Image.Image) -> Image.Image:
    """A grey TIFF of 12 bits scaled to 16, as Pillow returns numbers up to 4095; other pictures as they are."""
    if getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE) != (12,) or image.mode != "I;16":
        return image
    values = np.asarray(image)
    wide = Image.fromarray(values << 4 | values >> 8)
    wide.info = dict(image.info)
    return wide


def reducing_factor(size: tuple[int, int]) -> int:
    """The smallest whole factor by which a picture of this size has to be reduced."""
    return math.ceil(math.sqrt(math.prod(size) / MAX_DECODED_PIXELS))


def reduced(image: Image.Image, factor: int) -> Image.Image:
    """The picture with one pixel for each `factor` × `factor` of its pixels, their mean."""
    if factor <= 1:
        return image
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode.startswith("I;"):
        image = image.convert("I")
    return image.reduce(factor)


def decode_unidentified(path: Path, max_pixels: int) -> Image.Image:
    """The picture of a file that Pillow alone does not know.

    Raises UnreadableImageError, which names the format, and what reads it, if they are known.
    """
    start = first_bytes(path)[:64]
    brands = {start[n : n + 4] for n in range(8, 64, 4)} if start[4:8] == b"ftyp" else set()
    if brands.intersection(AVIF_BRANDS):
        raise UnreadableImageError("is an AVIF picture, which this Pillow cannot read: pip install -U pillow")
    if start.startswith(JPEG_XL_STARTS):
        raise UnreadableImageError("is a JPEG XL picture, which Pillow cannot read; export it as JPEG or PNG")
    if not brands.intersection(HEIC_BRANDS):
        raise UnreadableImageError(not_a_picture(path))
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableImageError("is a HEIC picture, which needs pillow-heif: pip install pillow-heif") from None
    heif = pillow_heif.open_heif(path)
    if math.prod(heif.size) > max_pixels:
        raise UnreadableImageError(too_many_pixels(max_pixels))
    picture: Image.Image = heif.to_pillow()
    return picture
