"""Pictures as people have them -> what the VAE encodes: 3 H W in [-1, 1]."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def read_mask(mask: Any) -> Tensor:
    """A user's mask as H W in [0, 1]: from a PIL image (white may change), an array or a tensor. Raises ValueError."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(to_rgb(mask, "black").convert("L"), dtype=np.float32) / 255
    if not isinstance(mask, np.ndarray | Tensor):
        raise ValueError(f"a blend's own mask is an image, an array or a tensor, not {type(mask).__name__}")
    out = torch.as_tensor(mask).float()
    if out.ndim == 2 and (out > 1).any():
        raise ValueError(f"a blend's own mask lies between 0 and 1, and has {float(out.max()):g} in it: divide by 255?")
    if out.ndim != 2 or not out.numel() or not torch.isfinite(out).all():
        raise ValueError(f"a blend's own mask must be rows × columns of finite numbers, not {tuple(out.shape)}")
    return out


def read_image(path: str | Path, ground: str = "white") -> Image.Image:
    """The picture in a file, RGB, upright (EXIF), transparency on a ground, 16 bits rounded to 8; of several the first.

    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not a picture' if path.is_dir() else 'no such file'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A few kilobytes may unpack into more memory than there is: Pillow warns from some 89 million pixels on.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return to_rgb(picture, ground)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture that Pillow can read") from None
    except Exception as error:  # broken files raise whatever their decoder meets
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None


def to_rgb(picture: Image.Image, ground: str = "white") -> Image.Image:
    """Any mode and EXIF orientation -> upright RGB. Raises ValueError for pixels of floating-point numbers, whose white
    nobody knows."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if picture.mode.startswith("I"):  # 16 bits a pixel, in Pillow's 32-bit mode too
        grey = np.clip(np.asarray(picture, dtype=np.int64), 0, 65535)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture).convert("RGB")
    return picture.convert("RGB")


def fit_image(picture: Any, size: tuple[int, int], fit: str = "crop") -> Tensor:
    """A PIL image in rows and columns of `size`, as 3 H W in [-1, 1]. fit: "crop" scales it until it covers them and
    cuts off what is over on both sides; "stretch" does not keep its shape."""
    if fit not in ("crop", "stretch"):
        raise ValueError(f'fit is "crop" or "stretch", not {fit!r}')
    if not isinstance(picture, Image.Image):
        raise ValueError(f"a picture is a file, an image of Pillow or a tensor, not {type(picture).__name__}")
    if not all(picture.size):
        raise ValueError("the picture has no pixels")
    try:
        made = to_rgb(picture)
    except OSError as error:  # opened, and not yet read
        raise ValueError(f"the picture cannot be read ({' '.join(str(error).split())})") from None
    if made.size != size[::-1]:
        box = crop_box(made.size, size) if fit == "crop" else None
        made = made.resize(size[::-1], Image.Resampling.LANCZOS, box)
    return torch.from_numpy(np.asarray(made).copy()).permute(2, 0, 1).float() / 127.5 - 1


def composite(edited: Tensor, photograph: Tensor, mask: Tensor) -> Tensor:
    """The photograph's own pixels where the mask h w is 0, the edited picture's where it is 1; both 3 H W. What the VAE
    alone has changed is so undone; the mask's edges can be seen."""
    m = F.interpolate(mask[None, None].to(edited), edited.shape[1:], mode="nearest")[0]
    return torch.where(m == 1, edited, torch.where(m == 0, photograph, photograph + m * (edited - photograph)))


def check_image_tensor(picture: Tensor, size: Any) -> tuple[int, int]:
    """Rows and columns of a tensor. Raises ValueError where it is not 3 H W in [-1, 1], or is to have another size."""
    if size is not None:
        raise ValueError("a tensor is taken in its own size: leave size out")
    good = picture.ndim == 3 and len(picture) == 3 and picture.numel() > 0 and picture.is_floating_point()
    if not good or not picture.isfinite().all() or picture.abs().max() > 1:
        raise ValueError(
            "a picture is 3 H W in [-1, 1], floating-point numbers, and not a tensor of "
            f"{tuple(picture.shape)}, {picture.dtype}, or other values"
        )
    return picture.shape[1], picture.shape[2]


def crop_box(given: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Of a picture (columns, rows) the largest part, in its middle, that has the shape of rows × columns: left, upper,
    right, lower."""
    width, height = given
    scale = min(width / size[1], height / size[0])
    w, h = size[1] * scale, size[0] * scale
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def to_pil(picture: Tensor) -> Image.Image:
    """3 H W in [-1, 1] -> 8 bits a channel."""
    return Image.fromarray(((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())
