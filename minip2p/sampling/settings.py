"""Where a run begins: what is asked of it, checked.

Axes: c h w latents.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import Attend, fused
from minip2p.attention.store import check_attend
from minip2p.checkpoints.components import Components, ImageConditioning, latent_size
from minip2p.sampling.conditioning import Conditioning
from minip2p.validation import is_finite, is_integer


@dataclass(frozen=True, eq=False)
class RunSettings:
    """Where a run begins: its prompt and settings, and the noise, 1 c h w."""

    prompt: str
    noise: Tensor
    steps: int
    guidance_scale: float
    negative_prompt: str = ""
    seed: int | None = None
    attend: Attend = fused
    conditioning: Conditioning = field(default_factory=Conditioning)


def prepare_run(
    parts: Components,
    prompt: str,
    *,
    guidance_scale: float,
    seed: int = 0,
    steps: int = 50,
    size: tuple[int, int] | None = None,
    negative_prompt: str = "",
    latents: Tensor | None = None,
    attend: Attend = fused,
    image: ImageConditioning | None = None,
) -> RunSettings:
    """Checks what a run begins with. Raises ValueError with one line for what the model cannot take."""
    if not is_finite(guidance_scale):
        raise ValueError(f"guidance must be a finite number, not {guidance_scale}")
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie between 0 and 2^63 - 1, not {seed}")
    parts.scheduler.timesteps(steps)
    check_attend(attend)
    for text in (prompt, negative_prompt):
        parts.text.prompt(text)
    if parts.extra_channels != (0 if image is None else image.channels.shape[1]):
        raise ValueError(
            "this model makes a picture of a picture: use instruct, or where it has a mask, inpaint"
            if parts.extra_channels
            else "this model reads no picture beside its latents"
        )
    own = None if image is None else (image.channels.shape[-2], image.channels.shape[-1])
    channels = parts.vae.config.latent_channels
    if latents is None:
        shape = own or latent_size(parts, size)
        noise = torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(int(seed)))
    else:
        check_latents(latents, channels, own)
        noise = latents.float()
    drawn = seed if latents is None else None
    return RunSettings(prompt, noise, steps, guidance_scale, negative_prompt, drawn, attend, Conditioning(image=image))


def check_latents(latents: Any, channels: int, size: tuple[int, int] | None) -> None:
    """Raises ValueError for what are no latents of so many channels, rows and columns."""
    whole = isinstance(latents, Tensor) and latents.ndim == 4 and latents.numel() > 0
    if not whole or latents.shape[:2] != (1, channels) or (size is not None and latents.shape[2:] != size):
        raise ValueError(f"latents must be 1 {channels} h w, not {tuple(getattr(latents, 'shape', ()))}")
    if not torch.isfinite(latents).all():
        raise ValueError("latents must be finite; these have NaN or infinity in them")
