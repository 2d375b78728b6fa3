"""What models read beside the latents that make a picture of a picture: InstructPix2Pix and inpainting.

Axes: c h w latents, H W pixels.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.blend import own_mask
from minip2p.parts import Beside, Parts
from minip2p.picture import check_picture, fitted, read, rgb
from minip2p.start import latent_size


def photograph(parts: Parts, picture: Any, size: tuple[int, int] | None, fit: str) -> Tensor:
    """A picture as 3 H W in [-1, 1], of rows and columns that the model takes: a file or an image of Pillow, brought to
    `size`, the model's own where None; or 3 H W as it is. Raises ValueError or FileNotFoundError."""
    if isinstance(picture, Tensor):
        latent_size(parts, check_picture(picture, size))
        return picture
    sides = [side * parts.vae.stride for side in latent_size(parts, size)]
    return fitted(read(picture) if isinstance(picture, str | Path) else picture, (sides[0], sides[1]), fit)


def instructed(parts: Parts, picture: Tensor, guidance: float) -> Beside:
    """For InstructPix2Pix (Brooks et al. 2022, section 3.2): the picture's latents, unscaled. Raises ValueError for
    another model."""
    if parts.beside != parts.vae.config.latent_channels:
        raise ValueError(f"this model follows no instructions: its UNet reads {parts.beside} channels beside its "
                         f"latents, and not a picture's {parts.vae.config.latent_channels}")  # fmt: skip
    return Beside(parts.vae.unscale(parts.encode(picture[None])).cpu(), guidance)


def masked(parts: Parts, picture: Tensor, mask: Any, fit: str) -> Beside:
    """For inpainting (Rombach et al. 2022, section 4.5): the mask, 1 where there is to be something new, and the
    latents of the picture, grey there: their mean, where diffusers draws them. mask: a file, an image of Pillow or H W
    in [0, 1], white or 1 for what is new. Raises ValueError for another model, and for a mask that is nowhere."""
    if parts.beside != 1 + parts.vae.config.latent_channels:
        raise ValueError(f"this model does not paint into a picture: its UNet reads {parts.beside} channels beside its "
                         f"latents, and not a mask and a picture's {parts.vae.config.latent_channels}")  # fmt: skip
    size = (picture.shape[1], picture.shape[2])
    if isinstance(mask, str | Path | Image.Image):
        white = fitted(read(mask, "black") if isinstance(mask, str | Path) else rgb(mask, "black"), size, fit)
        mask = (white.mean(0) + 1) / 2
    new = F.interpolate(own_mask(mask)[None, None], size, mode="nearest") >= 0.5
    if not new.any():
        raise ValueError("the mask is nowhere white: there is nothing to paint")
    latents = parts.encode(torch.where(new[0], 0.0, picture)[None]).cpu()
    rows = F.interpolate(new.float(), (latents.shape[-2], latents.shape[-1]), mode="nearest")
    return Beside(torch.cat([rows, latents], dim=1))
