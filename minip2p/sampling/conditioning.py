"""What a run is conditioned on besides its prompts: what an inversion leaves behind, and pictures as input.

Axes: t steps, n tokens, d width of a text embedding; c h w latents; H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.checkpoints.components import Components
from minip2p.io.images import check_image_tensor, fit_image, read_image, read_mask, read_mask_image
from minip2p.io.tensors import to_device
from minip2p.sched import DDIMScheduler, Step, fresh_noise_steps
from minip2p.text.encoder import TextEmbedding


@dataclass(frozen=True, eq=False)
class ImageConditioning:
    """Channels that the UNet reads besides the latents, in models trained for it.

    channels: 1 c h w. image_guidance_scale: w_I of InstructPix2Pix (Brooks et al. 2022, section 3.2.1), whose
    unconditional rows have zeros instead of the image; None for inpainting, where all rows have the same channels.
    """

    channels: Tensor
    image_guidance_scale: float | None = None

    def rows(self, count: int, empty: int = 0) -> Tensor:
        """The channels for `count` rows, count c h w; the first `empty` of them are zeros."""
        full = self.channels.expand(count - empty, -1, -1, -1)
        return torch.cat([torch.zeros_like(self.channels).expand(empty, -1, -1, -1), full])


@dataclass(frozen=True, eq=False)
class Conditioning:
    """How a run differs from plain DDIM with one negative prompt. Edits of the run follow it.

    uncond_embeddings: the unconditional embedding of each step, t rows (null-text inversion). variance_noise: z of each
    step, t c h w; the steps are then DDPM's (edit-friendly inversion), unless eta is given. skip_steps: edits take so
    many of the source's first steps unchanged. proximal_quantile: of the guidance, see `guidance.soft_threshold`.
    image: channels that the UNet reads besides the latents. eta: the share of the noise that each step replaces by z,
    see `fresh_noise_steps`. source_guidance_scale: edits correct their predictions by the error of the source's, which
    has this guidance scale (virtual inversion); None: they do not, and the source has the scale of the run.
    guidance_interval: the share (start, end) of the steps that are guided; outside of it w is 1 (Kynkäänniemi et al.
    2024, eq. 5, by steps instead of noise levels); None is all. uncond_every: unconditional rows run at every n-th
    guided step, and the guided steps between take over the difference ε(c) − ε(∅) of the last.
    """

    uncond_embeddings: TextEmbedding | None = None
    variance_noise: Tensor | None = None
    skip_steps: int = 0
    proximal_quantile: float = 0.0
    image: ImageConditioning | None = None
    eta: float | None = None
    source_guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    uncond_every: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether the run is plain DDIM."""
        if self.is_approximate:
            return False
        has_tensors = any(part is not None for part in (self.uncond_embeddings, self.variance_noise, self.image))
        return not has_tensors and not self.skip_steps and not self.proximal_quantile

    @property
    def is_approximate(self) -> bool:
        """Whether the guidance of some steps is left out or taken over from another."""
        return self.guidance_interval is not None or self.uncond_every != 1

    def guided_steps(self, steps: int) -> range:
        """The steps with guidance. steps: of the run."""
        start, end = self.guidance_interval or (0.0, 1.0)
        return range(max(int(start * steps), self.skip_steps), int(end * steps))

    def runs_unconditional(self, step: int, steps: int) -> bool:
        """Whether unconditional rows run at a step; else its guidance is left out or taken over. steps: of the run."""
        guided = self.guided_steps(steps)
        return step in guided and (step - guided.start) % self.uncond_every == 0

    def executed_scale(self, step: int, steps: int, guidance_scale: float) -> float:
        """The guidance scale whose rows run at a step: that of the run, or 1 without unconditional rows."""
        return guidance_scale if self.runs_unconditional(step, steps) or not self.is_approximate else 1.0

    @property
    def sampler(self) -> str:
        """The name of the steps: DDIM, DDPM, LCM, or for virtual inversion DDCM (Xu et al. 2023)."""
        if self.variance_noise is None:
            return "DDIM"
        if self.eta is None:
            return "DDPM"
        return "LCM" if self.source_guidance_scale is None else "DDCM"

    def steps(self, scheduler: DDIMScheduler, count: int) -> list[Step]:
        """The steps of the run, noisiest first."""
        steps = scheduler.steps(count)
        return steps if self.eta is None else fresh_noise_steps(steps, self.eta)

    def corrects(self, step: int) -> bool:
        """Whether edits correct their prediction of a step by the source's."""
        return self.source_guidance_scale is not None and step >= self.skip_steps

    def source_scale(self, guidance_scale: float) -> float:
        """The guidance scale of the source's predictions, from that of the run."""
        return guidance_scale if self.source_guidance_scale is None else self.source_guidance_scale

    @property
    def without_image_guidance(self) -> ImageConditioning | None:
        """The image channels for a conditional row that runs alone."""
        return None if self.image is None else ImageConditioning(self.image.channels)

    def uncond_at(self, step: int, negative: TextEmbedding) -> TextEmbedding:
        """The unconditional embedding of a step, one row: the step's own, or the negative prompt's."""
        if self.uncond_embeddings is None:
            return negative
        row, device, dtype = self.uncond_embeddings[step : step + 1], negative.tokens.device, negative.tokens.dtype
        pooled = None if row.pooled is None else to_device(row.pooled, device, dtype)
        return TextEmbedding(to_device(row.tokens, device, dtype), pooled)

    def noise_at(self, step: int) -> Tensor | None:
        """z of a step, 1 c h w, or None where the steps are DDIM's."""
        return None if self.variance_noise is None else self.variance_noise[step : step + 1]


def load_photo(components: Components, picture: Any, size: tuple[int, int] | None, fit: str) -> Tensor:
    """A photograph as 3 H W in [-1, 1], in a size that the model takes.

    picture: a file or a Pillow image, which is scaled to `size` (rows, columns; None is the model's own size) by `fit`,
    "crop" or "stretch"; or a tensor 3 H W, which is taken as it is.
    Raises ValueError or FileNotFoundError with one line.
    """
    if isinstance(picture, Tensor):
        components.latent_size(check_image_tensor(picture, size))
        return picture
    rows, columns = (side * components.vae.stride for side in components.latent_size(size))
    image = read_image(picture) if isinstance(picture, str | Path) else picture
    return fit_image(image, (rows, columns), fit)


def instruct_pix2pix_conditioning(
    components: Components, picture: Tensor, image_guidance_scale: float
) -> ImageConditioning:
    """For InstructPix2Pix (Brooks et al. 2022, section 3.2): the unscaled latents of the picture, 3 H W.

    Raises ValueError for a model that is not an InstructPix2Pix.
    """
    channels = components.vae.config.latent_channels
    if components.extra_channels != channels:
        raise ValueError(
            f"this model follows no instructions: its UNet reads {components.extra_channels} channels besides its "
            f"latents, not the {channels} of a picture; load a model such as InstructPix2Pix"
        )
    latents = components.vae.unscale(components.encode(picture[None])).cpu()
    return ImageConditioning(latents, image_guidance_scale)


def inpainting_conditioning(components: Components, picture: Tensor, mask: Any, fit: str) -> ImageConditioning:
    """For inpainting (Rombach et al. 2022, section 4.5): the mask, and the latents of the picture greyed out under it.

    The latents are the mean of the encoder's distribution; diffusers draws a sample from it.

    picture: 3 H W. mask: a file, a Pillow image or H W in [0, 1]; white or 1 where something new is to be painted.
    Raises ValueError for a model that does not inpaint, and for a mask that is white nowhere.
    """
    channels = 1 + components.vae.config.latent_channels
    if components.extra_channels != channels:
        raise ValueError(
            f"this model does not paint into a picture: its UNet reads {components.extra_channels} channels besides "
            f"its latents, not the {channels} of a mask and a picture"
        )
    size = (picture.shape[1], picture.shape[2])
    if isinstance(mask, str | Path | Image.Image):
        mask = (fit_image(read_mask_image(mask), size, fit).mean(0) + 1) / 2
    painted = F.interpolate(read_mask(mask)[None, None], size, mode="nearest") >= 0.5  # 1 1 H W
    if not painted.any():
        raise ValueError("the mask is nowhere white: there is nothing to paint")
    latents = components.encode(torch.where(painted[0], 0.0, picture)[None]).cpu()
    mask_latent = F.interpolate(painted.float(), (latents.shape[-2], latents.shape[-1]), mode="nearest")
    return ImageConditioning(torch.cat([mask_latent, latents], dim=1))
