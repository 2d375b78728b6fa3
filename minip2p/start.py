"""Where a run begins: what is asked of it, checked.

Axes: c h w latents.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minip2p.attention import Attend, Store, fused
from minip2p.config import is_finite, is_whole
from minip2p.parts import Parts


@dataclass(frozen=True, eq=False)
class Way:
    """How a run goes through its steps, where not as usual: what an inversion leaves for those who follow.

    unconditional: the embedding of each step, T n d, where it is not the negative prompt's (null-text inversion).
    noise: z of each step, T c h w; the steps are then DDPM's, and not DDIM's (edit-friendly inversion). skip: an edit
    takes so many of the source's first steps as they are. proximal: of the guidance, see `parts.shrunk`.
    """

    unconditional: Tensor | None = None
    noise: Tensor | None = None
    skip: int = 0
    proximal: float = 0.0

    def z(self, step: int) -> Tensor | None:
        return None if self.noise is None else self.noise[step : step + 1]


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run begins: its prompt and settings, and the noise, 1 c h w."""

    prompt: str
    noise: Tensor
    steps: int
    guidance: float
    negative: str = ""
    seed: int | None = None
    attend: Attend = fused
    way: Way = field(default_factory=Way)


def check_attend(attend: Any) -> None:
    if isinstance(attend, Store) or not callable(attend):
        raise ValueError(
            "attend is a function of (q, k, v, site); a function of maps, as a Store is, goes into explicit()"
        )


def begin(
    parts: Parts,
    prompt: str,
    *,
    guidance: float,
    seed: int = 0,
    steps: int = 50,
    size: tuple[int, int] | None = None,
    negative: str = "",
    latents: Tensor | None = None,
    attend: Attend = fused,
) -> Start:
    """Checks what a run begins with. Raises ValueError with one line for what the model cannot take."""
    if not is_finite(guidance):
        raise ValueError(f"guidance must be a finite number, not {guidance}")
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie between 0 and 2^63 - 1, not {seed}")
    parts.sched.times(steps)
    check_attend(attend)
    for text in (prompt, negative):
        parts.text.prompt(text)
    if latents is None:
        noise = torch.randn(1, parts.unet.config.in_channels, *latent_size(parts, size),
                            generator=torch.Generator().manual_seed(int(seed)))  # fmt: skip
    elif (
        not isinstance(latents, Tensor)
        or latents.ndim != 4
        or latents.shape[:2] != (1, parts.unet.config.in_channels)
        or not latents.numel()
    ):
        raise ValueError(
            f"latents must be 1 {parts.unet.config.in_channels} h w, not {tuple(getattr(latents, 'shape', ()))}"
        )
    elif not torch.isfinite(latents).all():
        raise ValueError("latents must be finite; these have NaN or infinity in them")
    else:
        noise = latents.float()
    return Start(prompt, noise, steps, guidance, negative, seed if latents is None else None, attend)


def latent_size(parts: Parts, size: tuple[int, int] | None) -> tuple[int, int]:
    """Latent rows and columns for a picture of so many rows and columns; the UNet's sample size where None."""
    if size is None:
        side = parts.unet.config.sample_size
        if side is None:
            raise ValueError("this model has no sample size of its own: give a size")
        return side if isinstance(side, tuple) else (side, side)
    stride, least = parts.vae.stride, parts.vae.stride * parts.unet.stride
    sides = tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or any(not is_whole(side) or side % stride or side < least for side in sides):
        raise ValueError(f"size must be two multiples of {stride} of at least {least} pixels, not {size}")
    return size[0] // stride, size[1] // stride
