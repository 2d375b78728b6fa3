"""What models read beside the latents that make a picture of a picture: InstructPix2Pix and inpainting.

Axes: c h w latents, H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.checkpoints.components import Components, ImageConditioning, latent_size
from minip2p.io.images import check_image_tensor, fit_image, read_image, read_mask, to_rgb


@dataclass(frozen=True, eq=False)
class Conditioning:
    """How a run goes through its steps, where not as usual: what an inversion leaves for those who follow.

    unconditional: the embedding of each step, T n d, where it is not the negative prompt's (null-text inversion).
    noise: z of each step, T c h w; the steps are then DDPM's, and not DDIM's (edit-friendly inversion). skip: an edit
    takes so many of the source's first steps as they are. proximal: of the guidance, see `parts.shrunk`. beside: what
    the UNet reads beside the latents, of models that were made to.
    """

    uncond_embeddings: Tensor | None = None
    variance_noise: Tensor | None = None
    skip_steps: int = 0
    proximal_quantile: float = 0.0
    image: ImageConditioning | None = None

    @property
    def without_image_guidance(self) -> ImageConditioning | None:
        """What stands beside the conditional row, where it is run alone."""
        return None if self.image is None else ImageConditioning(self.image.channels)

    def noise_at(self, step: int) -> Tensor | None:
        return None if self.variance_noise is None else self.variance_noise[step : step + 1]


def load_photo(parts: Components, picture: Any, size: tuple[int, int] | None, fit: str) -> Tensor:
    """A picture as 3 H W in [-1, 1], of rows and columns that the model takes: a file or an image of Pillow, brought to
    `size`, the model's own where None; or 3 H W as it is. Raises ValueError or FileNotFoundError."""
    if isinstance(picture, Tensor):
        latent_size(parts, check_image_tensor(picture, size))
        return picture
    sides = [side * parts.vae.stride for side in latent_size(parts, size)]
    return fit_image(read_image(picture) if isinstance(picture, str | Path) else picture, (sides[0], sides[1]), fit)


def instruct_pix2pix_conditioning(parts: Components, picture: Tensor, guidance: float) -> ImageConditioning:
    """For InstructPix2Pix (Brooks et al. 2022, section 3.2): the picture's latents, unscaled. Raises ValueError for
    another model."""
    if parts.extra_channels != parts.vae.config.latent_channels:
        raise ValueError(
            f"this model follows no instructions: its UNet reads {parts.extra_channels} channels beside its "
            f"latents, and not a picture's {parts.vae.config.latent_channels}"
        )
    return ImageConditioning(parts.vae.unscale(parts.encode(picture[None])).cpu(), guidance)


def inpainting_conditioning(parts: Components, picture: Tensor, mask: Any, fit: str) -> ImageConditioning:
    """For inpainting (Rombach et al. 2022, section 4.5): the mask, 1 where there is to be something new, and the
    latents of the picture, grey there: their mean, where diffusers draws them. mask: a file, an image of Pillow or H W
    in [0, 1], white or 1 for what is new. Raises ValueError for another model, and for a mask that is nowhere."""
    if parts.extra_channels != 1 + parts.vae.config.latent_channels:
        raise ValueError(
            f"this model does not paint into a picture: its UNet reads {parts.extra_channels} channels beside its "
            f"latents, and not a mask and a picture's {parts.vae.config.latent_channels}"
        )
    size = (picture.shape[1], picture.shape[2])
    if isinstance(mask, str | Path | Image.Image):
        white = fit_image(
            read_image(mask, "black") if isinstance(mask, str | Path) else to_rgb(mask, "black"), size, fit
        )
        mask = (white.mean(0) + 1) / 2
    new = F.interpolate(read_mask(mask)[None, None], size, mode="nearest") >= 0.5
    if not new.any():
        raise ValueError("the mask is nowhere white: there is nothing to paint")
    latents = parts.encode(torch.where(new[0], 0.0, picture)[None]).cpu()
    rows = F.interpolate(new.float(), (latents.shape[-2], latents.shape[-1]), mode="nearest")
    return ImageConditioning(torch.cat([rows, latents], dim=1))
