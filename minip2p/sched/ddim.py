"""DDIM (Song et al. 2020, arXiv 2010.02502) as pure functions.

| paper | here | meaning |
|---|---|---|
| x_t, x_{t−1} | x, result | latents before and after a step |
| α_t | abar | share of signal: DDIM's α is DDPM's ᾱ, the *product* of (1 − β), a trap when reading both |
| ε_θ(x_t) | eps | predicted noise |
| "predicted x_0" | x0 | (x_t − √(1 − α_t) ε) / √α_t |
| v | prediction | √α ε − √(1 − α) x_0 (Salimans & Ho 2022, appendix D) |
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minip2p.config import SchedulerConfig
from minip2p.validation import is_integer


def split_prediction(x: Tensor, prediction: Tensor, alpha_cumprod: float, kind: str) -> tuple[Tensor, Tensor]:
    """(ε, x_0) from the model's prediction at signal share ᾱ. kind: "epsilon" or "v_prediction"."""
    signal, noise = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if kind == "v_prediction":
        return signal * prediction + noise * x, signal * x - noise * prediction
    return prediction, (x - noise * prediction) / signal


def ddim_step(
    x: Tensor,
    prediction: Tensor,
    alpha_cumprod: float,
    alpha_cumprod_prev: float,
    kind: str = "epsilon",
    sigma: float = 0.0,
) -> Tensor:
    """From signal share ᾱ to ᾱ' (Song et al. 2020, eq. 12, its noise σ z left to add):

        x' = √ᾱ' x_0 + √(1 − ᾱ' − σ²) ε

    Without noise, the same formula samples (ᾱ' > ᾱ) and inverts (ᾱ' < ᾱ); given the same ε, the one undoes the other.
    (Given the same v it does not: inversion reads v at the x that it has, as diffusers' DDIMInverseScheduler does.)
    """
    eps, x0 = split_prediction(x, prediction, alpha_cumprod, kind)
    return alpha_cumprod_prev**0.5 * x0 + (1 - alpha_cumprod_prev - sigma**2) ** 0.5 * eps


def ddpm_std(alpha_cumprod: float, alpha_cumprod_prev: float) -> float:
    """Of a DDPM step's noise (Song et al. 2020, eq. 16, η = 1):  σ = √((1 − ᾱ') / (1 − ᾱ) · (1 − ᾱ / ᾱ'))."""
    return ((1 - alpha_cumprod_prev) / (1 - alpha_cumprod) * (1 - alpha_cumprod / alpha_cumprod_prev)) ** 0.5


class Step(NamedTuple):
    """One step of a run: the time step that the model is asked at, and the signal shares before and after.

    Inversion takes the same step the other way, from `abar_next` to `abar`, and asks the model at the same t.
    """

    t: int
    alpha_cumprod: float
    alpha_cumprod_prev: float


@dataclass(frozen=True)
class DDIMScheduler:
    """The noise schedule that the model was trained with, and the steps that a run takes through it."""

    config: SchedulerConfig

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_t for t = 0 … T−1: the running product of 1 − β. float32, as the models were trained."""
        c = self.config
        power = 0.5 if c.beta_schedule == "scaled_linear" else 1.0
        ends = c.beta_start**power, c.beta_end**power
        betas = torch.linspace(*ends, c.num_train_timesteps, dtype=torch.float32) ** (1 / power)
        return torch.cumprod(1 - betas, dim=0)

    def timesteps(self, steps: int) -> list[int]:
        """The time steps that the model is asked at, noisiest first (spacings: Lin et al. 2023, table 2)."""
        c, total = self.config, self.config.num_train_timesteps
        if not is_integer(steps) or not 1 <= steps <= total:
            raise ValueError(f"steps must lie between 1 and {total}, not {steps!r}")
        if c.timestep_spacing == "leading":
            times: np.ndarray = np.arange(steps)[::-1] * (total // steps) + c.steps_offset
        elif c.timestep_spacing == "trailing":
            # Cut, because rounding lets arange go one too far at 62 of the 1000 numbers of steps.
            times = np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
        else:
            times = np.round(np.linspace(0, total - 1, steps))[::-1]
        # With an offset, 1000 leading steps would begin one past the end.
        return [min(int(t), total - 1) for t in times]

    def steps(self, steps: int) -> list[Step]:
        """The steps of a run, noisiest first. A step leads to the next time, so that the way back is the same grid; of
        trailing times T // steps down, as in diffusers."""
        c, abars = self.config, self.alphas_cumprod.tolist()
        times, apart = self.timesteps(steps), c.num_train_timesteps // steps
        if c.timestep_spacing == "trailing":
            following = [t - apart for t in times]
        else:
            following = times[1:] + [-1 if c.timestep_spacing == "linspace" else times[-1] - apart]
        final = 1.0 if c.set_alpha_to_one else abars[0]
        return [Step(t, abars[t], abars[s] if s >= 0 else final) for t, s in zip(times, following, strict=True)]

    def step(
        self,
        x: Tensor,
        prediction: Tensor,
        at: Step,
        direction: Literal["sample", "invert"] = "sample",
        noise: Tensor | None = None,
    ) -> Tensor:
        """One DDIM step of this model's prediction type: towards the picture, or back towards the noise. noise: z, of
        a DDPM step towards the picture (η = 1); of a DDIM step, None."""
        here, there = (
            (at.alpha_cumprod, at.alpha_cumprod_prev)
            if direction == "sample"
            else (at.alpha_cumprod_prev, at.alpha_cumprod)
        )
        sigma = 0.0 if noise is None else self.ddpm_std(at)
        x = ddim_step(x, prediction, here, there, self.config.prediction_type, sigma)
        return x if noise is None else x + sigma * noise.to(x)

    def ddpm_std(self, at: Step) -> float:
        """The deviation of a DDPM step's noise."""
        return ddpm_std(at.alpha_cumprod, at.alpha_cumprod_prev)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The forward process (Ho et al. 2020, eq. 4): x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε. t: b."""
        abar = self.alphas_cumprod.to(x0.device)[t][:, None, None, None]
        return abar**0.5 * x0 + (1 - abar) ** 0.5 * noise
