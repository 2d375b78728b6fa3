"""Colour profiles (ICC) of pictures: colours become sRGB, in which the models were trained."""

import io
import warnings
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageCms

from minip2p.errors import Notice

# The colour space of a profile, and the Pillow mode of the pixels that it describes.
PROFILE_MODES: Mapping[str, str] = MappingProxyType({"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"})
# Pillow's modes of pictures whose pixels are grey or RGB after `convert`.
MODE_FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"RGB": ("RGB", "RGBX", "P", "YCbCr", "L", "1"), "L": ("L", "1"), "CMYK": ("CMYK",)}
)
# A profile that changes no channel by more than this is one of the many that describe sRGB.
ROUNDING = 2


def to_srgb(image: Image.Image, name: str) -> Image.Image:
    """A picture without transparency, 8 bits a channel -> RGB, converted to sRGB by the ICC profile in its `info`.

    A picture without a profile, and one whose profile is sRGB, keeps its pixels. A Lab picture needs no profile, as its
    numbers state the colours themselves. A profile that cannot be used is ignored, and a Notice says so. The result has
    no profile. name: what the Notice calls the picture.
    """
    content = image.info.get("icc_profile")
    out = None
    if content and image.mode != "LAB":
        try:
            out = convert(image, content)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
            reason = " ".join(str(error).split())
            warnings.warn(f"{name}: its colour profile is ignored ({reason})", Notice, stacklevel=2)
    out = image.convert("RGB") if out is None else out
    out.info.pop("icc_profile", None)
    return out


def convert(image: Image.Image, content: bytes) -> Image.Image | None:
    """The picture converted from the colour space of a profile to sRGB; None if these are the same.

    Raises ValueError for the profile of another kind of pixels, and the errors of ImageCms for a broken one.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    space = profile.profile.xcolor_space
    mode = PROFILE_MODES.get(space)
    if mode is None or image.mode not in MODE_FAMILIES[mode]:
        raise ValueError(f"it is for {space.strip()} pixels, and the picture's are {image.mode}")
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "CMYK":
        samples = sample_colours(mode)
        change = np.asarray(transform.apply(samples), dtype=int) - np.asarray(samples.convert("RGB"), dtype=int)
        if np.abs(change).max() <= ROUNDING:
            return None
    return transform.apply(image.convert(mode))


def sample_colours(mode: str) -> Image.Image:
    """All greys, or a cube of 16³ colours, as a picture of mode "L" or "RGB"."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 17, dtype=np.uint8)] * 3), axis=-1)
    return Image.fromarray(cube.reshape(64, 64, 3))
