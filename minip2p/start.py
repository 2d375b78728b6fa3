"""Where a run begins: what is asked of it, checked.

Axes: c h w latents.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minip2p.attention import Attend, Store, fused
from minip2p.config import is_finite, is_whole
from minip2p.parts import Beside, Parts

MOST_PIXELS = 2**26  # 8192 x 8192: what a mistyped size asks for must not take all memory


@dataclass(frozen=True, eq=False)
class Way:
    """How a run goes through its steps, where not as usual: what an inversion leaves for those who follow.

    unconditional: the embedding of each step, T n d, where it is not the negative prompt's (null-text inversion).
    noise: z of each step, T c h w; the steps are then DDPM's, and not DDIM's (edit-friendly inversion). skip: an edit
    takes so many of the source's first steps as they are. proximal: of the guidance, see `parts.shrunk`. beside: what
    the UNet reads beside the latents, of models that were made to.
    """

    unconditional: Tensor | None = None
    noise: Tensor | None = None
    skip: int = 0
    proximal: float = 0.0
    beside: Beside | None = None

    @property
    def alone(self) -> Beside | None:
        """What stands beside the conditional row, where it is run alone."""
        return None if self.beside is None else Beside(self.beside.channels)

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
    beside: Beside | None = None,
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
    if parts.beside != (0 if beside is None else beside.channels.shape[1]):
        raise ValueError("this model makes a picture of a picture: use instruct, or where it has a mask, inpaint"
                         if parts.beside else "this model reads no picture beside its latents")  # fmt: skip
    own = None if beside is None else (beside.channels.shape[-2], beside.channels.shape[-1])
    channels = parts.vae.config.latent_channels
    if latents is None:
        shape = own or latent_size(parts, size)
        noise = torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(int(seed)))
    else:
        check_latents(latents, channels, own)
        noise = latents.float()
    drawn = seed if latents is None else None
    return Start(prompt, noise, steps, guidance, negative, drawn, attend, Way(beside=beside))


def check_latents(latents: Any, channels: int, size: tuple[int, int] | None) -> None:
    """Raises ValueError for what are no latents of so many channels, rows and columns."""
    whole = isinstance(latents, Tensor) and latents.ndim == 4 and latents.numel() > 0
    if not whole or latents.shape[:2] != (1, channels) or (size is not None and latents.shape[2:] != size):
        raise ValueError(f"latents must be 1 {channels} h w, not {tuple(getattr(latents, 'shape', ()))}")
    if not torch.isfinite(latents).all():
        raise ValueError("latents must be finite; these have NaN or infinity in them")


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
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"a picture of {size[0]} x {size[1]} pixels is too large: {MOST_PIXELS} are the most")
    return size[0] // stride, size[1] // stride
