"""Images and masks as users have them (files, Pillow images, arrays) <-> tensors as the model takes them.

Axes: 3 H W: an image as an RGB tensor in [-1, 1]; H W: a mask in [0, 1], both in image pixels; h w: latent pixels.
A `size` is (rows, columns), as tensors have it; Pillow's `Image.size` is (columns, rows).
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minip2p.errors import Notice
from minip2p.io.decode import UnreadableImageError, decode
from minip2p.io.icc import to_srgb


def read_mask(mask: Any) -> Tensor:
    """A user's mask in [0, 1] as a float32 tensor H W.

    mask: a Pillow image (white is 1, transparency counts as black), an array or a tensor.
    Raises ValueError for another type or number of axes, an empty mask, a value above 1 or below -0.5, and NaN or
    infinity.
    """
    if isinstance(mask, Image.Image):
        mask = np.asarray(read_mask_image(mask).convert("L"), dtype=np.float32) / 255
    if not isinstance(mask, np.ndarray | Tensor):
        raise ValueError(f"a mask is an image, an array or a tensor, not {type(mask).__name__}")
    if isinstance(mask, np.ndarray):
        if mask.dtype.kind not in "biuf":
            raise ValueError(f"a mask is an array of numbers, not of {mask.dtype}")
        mask = mask.copy()  # torch warns of an array that is not writable
    out = torch.as_tensor(mask).float()
    if out.ndim != 2 or not out.numel():
        raise ValueError(f"a mask must be rows × columns of numbers, not of shape {tuple(out.shape)}")
    if not out.isfinite().all():
        raise ValueError(f"a mask lies between 0 and 1, but {int((~out.isfinite()).sum())} values are NaN or infinite")
    if (out > 1).any():
        raise ValueError(f"a mask lies between 0 and 1, but its maximum is {float(out.max()):g}: divide it by 255?")
    if (out < -0.5).any():  # as in [-1, 1]; resampling may undershoot a little
        raise ValueError(f"a mask lies between 0 and 1, but its minimum is {float(out.min()):g}")
    return out


def read_mask_image(mask: str | Path | Image.Image) -> Image.Image:
    """A mask, a file or a Pillow image, as upright RGB; transparency counts as black.

    A mask of the numbers 0 and 1, as segmentations are stored, has 0 and 255 instead, and a Notice says so.
    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    image = to_rgb(mask, "black", "a mask") if isinstance(mask, Image.Image) else read_image(mask, "black")
    if np.asarray(image).max(initial=0) == 1:
        name = "a mask" if isinstance(mask, Image.Image) else str(mask)
        warnings.warn(f"{name}: its brightest pixel is 1 of 255, and 1 is taken for white", Notice, stacklevel=2)
        image = image.point(lambda value: 255 * value)
    return image


def read_image(path: str | Path, background: str = "white", max_pixels: int | None = None) -> Image.Image:
    """Reads an image file as upright RGB in sRGB, 8 bits a channel, as `to_rgb` describes.

    Of a file with several pictures it reads the main one. An image of more than 90 million pixels is reduced by a
    whole factor. max_pixels: of an image that is read at all; None is `decode.MAX_PIXELS`.
    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not an image' if path.is_dir() else 'no such file'}")
    try:
        return to_rgb(decode(path, max_pixels), background, str(path))
    except UnreadableImageError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # the decoders raise errors of many types for broken files
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None


def to_rgb(image: Image.Image, background: str = "white", name: str = "an image") -> Image.Image:
    """A Pillow image of any mode and EXIF orientation -> upright RGB in sRGB, 8 bits a channel.

    Converts from the image's colour profile to sRGB, and lays transparent pixels on `background`. Grey images of 12 and
    16 bits are rounded to 8; of colours of 16 bits Pillow keeps the upper 8. name: what a Notice calls the image.
    Raises ValueError for floating-point pixels (mode "F") and for 32-bit numbers, as their value for white is unknown.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = to_8_bits(image, name)
    if not image.has_transparency_data:
        return to_srgb(image, name)
    rgba = image.convert("RGBA")
    if image.info.get("icc_profile"):
        alpha = rgba.getchannel("A")
        is_grey = image.mode in ("1", "L", "LA")
        rgba = to_srgb(image.convert("L") if is_grey else rgba.convert("RGB"), name).convert("RGBA")
        rgba.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, background), rgba).convert("RGB")


def to_8_bits(image: Image.Image, name: str = "an image") -> Image.Image:
    """A grey image of 16 bits, which Pillow may hold in its 32-bit mode, rounded to 8: mode "L" of modes "I…".

    A Notice says so where the numbers look like those of 8 bits. name: what it calls the image.
    Raises ValueError for mode "F", and for numbers of more than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose white is unknown; convert it to 16 bits")
    values = np.asarray(image, dtype=np.int64).clip(min=0)
    if values.size and values.max() > 65535:
        raise ValueError("its pixels are numbers of more than 16 bits, whose white is unknown; convert it to 16 bits")
    if values.size and 0 < values.max() < 256:
        warnings.warn(
            f"{name}: is read as 16 bits, of which its largest number, {values.max()}, is nearly black; if it has 8 "
            "bits, save it as such",
            Notice,
            stacklevel=3,
        )
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    grey.info = dict(image.info)
    return grey


def fit_image(image: Any, size: tuple[int, int], fit: str = "crop") -> Tensor:
    """A Pillow image resized to `size` (rows, columns) -> 3 H W in [-1, 1].

    fit: "crop" keeps the aspect ratio and cuts off both ends of the longer side; "stretch" changes the aspect ratio.
    Raises ValueError for another `fit`, for what is not a Pillow image, and for an image that is empty or broken.
    """
    if fit not in ("crop", "stretch"):
        raise ValueError(f'fit is "crop" or "stretch", not {fit!r}')
    if not isinstance(image, Image.Image):
        hint = ": PIL.Image.fromarray makes one of it" if isinstance(image, np.ndarray) else ""
        raise ValueError(f"an image is a file, a Pillow image or a tensor, not {type(image).__name__}{hint}")
    if not all(image.size):
        raise ValueError("the image has no pixels")
    try:
        rgb = to_rgb(image)
    except OSError as error:  # Pillow opens a file first and decodes it later
        raise ValueError(f"the image cannot be read ({' '.join(str(error).split())})") from None
    if rgb.size != size[::-1]:
        box = crop_box(rgb.size, size) if fit == "crop" else None
        rgb = rgb.resize(size[::-1], Image.Resampling.LANCZOS, box)
    return torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1).float() / 127.5 - 1


def crop_box(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest centred box in an image that has the aspect ratio of `size`.

    image_size: (columns, rows). size: (rows, columns). Returns (left, upper, right, lower) in image pixels.
    """
    width, height = image_size
    scale = min(width / size[1], height / size[0])
    w, h = size[1] * scale, size[0] * scale
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def composite(edited: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """The edited image where the mask is 1, the original's own pixels where it is 0, a mix between: all 3 H W.

    This undoes what encoding and decoding by the VAE changed outside of the mask. The edges of the mask may be visible.
    mask: h w in [0, 1], resized to the nearest pixel.
    """
    m = F.interpolate(mask[None, None].to(edited), edited.shape[1:], mode="nearest")[0]
    return torch.where(m == 1, edited, torch.where(m == 0, original, original + m * (edited - original)))


def check_image_tensor(image: Tensor, size: Any) -> tuple[int, int]:
    """The rows and columns of an image tensor. Raises ValueError if it is not 3 H W in [-1, 1], or if `size` is set.

    A Notice says how a tensor is read that seems to be in [0, 1], the range of torchvision and diffusers.
    """
    if size is not None:
        raise ValueError("an image given as a tensor keeps its size: leave size out")
    valid = image.ndim == 3 and len(image) == 3 and image.numel() > 0 and image.is_floating_point()
    if not valid or not image.isfinite().all() or image.abs().max() > 1:
        raise ValueError(
            "an image tensor is 3 H W in [-1, 1], of floating-point numbers; "
            f"this one is {tuple(image.shape)}, {image.dtype}, or has other values"
        )
    if image.min() >= 0 and image.max() > 0.5:
        message = "an image tensor without negative values is taken as it is, in [-1, 1]; if it is in [0, 1], give "
        warnings.warn(f"{message}2 * image - 1", Notice, stacklevel=3)
    return image.shape[1], image.shape[2]


def to_pil(image: Tensor) -> Image.Image:
    """3 H W in [-1, 1] -> a Pillow image, 8 bits a channel."""
    return Image.fromarray(((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())
