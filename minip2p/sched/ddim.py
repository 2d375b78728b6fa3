"""DDIM (Song et al. 2020, arXiv 2010.02502) as pure functions.

| paper | code | meaning |
|---|---|---|
| x_t, x_{t−1} | x, result | latents before and after a step |
| α_t, α_{t−1} | alpha_cumprod, alpha_cumprod_prev | signal share (of the variance) before and after a step |
| ε_θ(x_t) | eps | predicted noise |
| "predicted x_0" | x0 | (x_t − √(1 − α_t) ε) / √α_t |
| v | prediction | √α ε − √(1 − α) x_0 (Salimans & Ho 2022, appendix D) |

A trap when reading both papers: DDIM's α_t is DDPM's ᾱ_t, the *product* of (1 − β_s) for all s ≤ t, and not DDPM's
α_t = 1 − β_t. Formulas below write it as ᾱ, and ᾱ' for the share that a step leads to. The code calls it
alpha_cumprod, as diffusers does.

Axes: b batch. Latents are b c h w; the functions of this module hold for tensors of any shape, except `add_noise`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minip2p.config import SchedulerConfig
from minip2p.io.tensors import to_device
from minip2p.validation import is_integer


def split_prediction(
    x: Tensor, prediction: Tensor, alpha_cumprod: float, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """(ε, x_0) from the model's prediction at signal share ᾱ. prediction_type: "epsilon" or "v_prediction"."""
    signal, noise = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == "v_prediction":
        return signal * prediction + noise * x, signal * x - noise * prediction
    return prediction, (x - noise * prediction) / signal


def ddim_step(
    x: Tensor,
    prediction: Tensor,
    alpha_cumprod: float,
    alpha_cumprod_prev: float,
    prediction_type: str = "epsilon",
    sigma: float = 0.0,
) -> Tensor:
    """The step from signal share ᾱ to ᾱ' (Song et al. 2020, eq. 12). The caller adds its random term, σ z.

        x' = √ᾱ' x_0 + √(1 − ᾱ' − σ²) ε

    At σ = 0 the same formula samples (ᾱ' > ᾱ) and inverts (ᾱ' < ᾱ). With the same ε, each undoes the other; with the
    same v, `ddim_inverse_step` undoes it.
    """
    eps, x0 = split_prediction(x, prediction, alpha_cumprod, prediction_type)
    return alpha_cumprod_prev**0.5 * x0 + max(1 - alpha_cumprod_prev - sigma**2, 0) ** 0.5 * eps


def ddim_inverse_step(
    x: Tensor, prediction: Tensor, alpha_cumprod: float, alpha_cumprod_prev: float, prediction_type: str = "epsilon"
) -> Tensor:
    """The step back from signal share ᾱ' to ᾱ: what `ddim_step` from ᾱ to ᾱ' at the same prediction came from.

    For ε it is `ddim_step` with the shares exchanged. For v, the step is a rotation of (x, v), and is solved for x:

        x' = cos x + sin v,   cos = √(ᾱ ᾱ') + √((1 − ᾱ)(1 − ᾱ')),   sin = √(ᾱ (1 − ᾱ')) − √(ᾱ' (1 − ᾱ))

    diffusers' DDIMInverseScheduler takes v for the rotation of x' instead, although the model is evaluated at the time
    step of x; then sampling with the same v does not lead back. In a run, sampling evaluates v at x and not at x', so
    that it leads back nearly: after 10 steps to 0.16 of the latents' deviation, and to 0.24 with diffusers' step.
    cos is 0 only for a single step from no signal to no noise, whose x does not enter x'; diffusers' step is used.
    """
    a, b = alpha_cumprod, alpha_cumprod_prev
    cos = (a * b) ** 0.5 + ((1 - a) * (1 - b)) ** 0.5
    if prediction_type != "v_prediction" or cos == 0:
        return ddim_step(x, prediction, b, a, prediction_type)
    sin = (a * (1 - b)) ** 0.5 - (b * (1 - a)) ** 0.5
    return (x - sin * prediction) / cos


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Rescales betas so that no signal is left at the last timestep, and ᾱ_0 stays (Lin et al. 2023, algorithm 1)."""
    signal = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    alphas_cumprod = ((signal - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


def ddpm_std(alpha_cumprod: float, alpha_cumprod_prev: float) -> float:
    """Standard deviation of the noise that a DDPM step adds (Song et al. 2020, eq. 16, η = 1):

    σ = √((1 − ᾱ') / (1 − ᾱ) · (1 − ᾱ / ᾱ'))
    """
    return ((1 - alpha_cumprod_prev) / (1 - alpha_cumprod) * (1 - alpha_cumprod / alpha_cumprod_prev)) ** 0.5


def x0_between(
    x: Tensor, x_prev: Tensor, alpha_cumprod: float, alpha_cumprod_prev: float, sigma: float = 0.0
) -> Tensor:
    """The x_0 of the step that led from x to x_prev, its result without the random term. `ddim_step` is solved for it:

        x_0 = (a x' − b x) / (a √ᾱ' − b √ᾱ),   a = √(1 − ᾱ), b = √(1 − ᾱ' − σ²)

    It holds for every prediction type. A step between equal shares determines no x_0; x_prev is returned for it.
    """
    a, b = (1 - alpha_cumprod) ** 0.5, max(1 - alpha_cumprod_prev - sigma**2, 0) ** 0.5
    determinant = a * alpha_cumprod_prev**0.5 - b * alpha_cumprod**0.5
    return x_prev if determinant == 0 else (a * x_prev - b * x) / determinant


class Step(NamedTuple):
    """One step of a run: the timestep at which the model is evaluated, and the signal shares before and after the step.

    Inversion takes the same step backwards, from `alpha_cumprod_prev` to `alpha_cumprod`, and evaluates the model at
    the same t. "prev" is the previous timestep of the forward process, as in diffusers: the less noisy side.
    sigma: standard deviation of the noise of a step that has noise; None is that of a DDPM step.
    """

    t: int
    alpha_cumprod: float
    alpha_cumprod_prev: float
    sigma: float | None = None


def fresh_noise_steps(steps: Sequence[Step], eta: float) -> list[Step]:
    """The steps of a run whose noise is replaced at each step, to the share η of its variance:

        x' = √ᾱ' x_0 + √(1 − η) √(1 − ᾱ') ε + σ z,   σ² = η (1 − ᾱ')

    At η = 1 nothing is left of the noise before the step: so consistency models sample (Song et al. 2023, algorithm 1),
    and so does InfEdit (Xu et al. 2023). At η = 0 the steps are DDIM's. The last step ends at x_0 itself.
    """
    ends = [*(step.alpha_cumprod for step in steps[1:]), 1.0]
    return [
        step._replace(alpha_cumprod_prev=end, sigma=(eta * (1 - end)) ** 0.5)
        for step, end in zip(steps, ends, strict=True)
    ]


@dataclass(frozen=True)
class DDIMScheduler:
    """The noise schedule that the model was trained with, and the steps that a run takes through it.

    fresh_noise: η of the runs that begin from noise, see `fresh_noise_steps`; None where they are DDIM. default_steps:
    of runs that say nothing else. few_steps: how many are enough for an edit of a photograph that is to be quick.
    """

    config: SchedulerConfig

    fresh_noise: ClassVar[float | None] = None
    default_steps: ClassVar[int] = 50
    few_steps: ClassVar[int] = 15

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_t for t = 0 … T−1: the running product of 1 − β. float32, as in the training of the published models."""
        c = self.config
        power = 0.5 if c.beta_schedule == "scaled_linear" else 1.0
        ends = c.beta_start**power, c.beta_end**power
        betas = torch.linspace(*ends, c.num_train_timesteps, dtype=torch.float32) ** (1 / power)
        if c.rescale_betas_zero_snr:
            betas = rescale_zero_terminal_snr(betas)
        return torch.cumprod(1 - betas, dim=0)

    def timesteps(self, num_steps: int) -> list[int]:
        """The timesteps at which a run evaluates the model, noisiest first (spacings: Lin et al. 2023, table 2).

        Raises ValueError unless num_steps is an integer from 1 to T.
        """
        c, total = self.config, self.config.num_train_timesteps
        if not is_integer(num_steps) or not 1 <= num_steps <= total:
            raise ValueError(f"steps must lie between 1 and {total}, not {num_steps!r}")
        if c.timestep_spacing == "leading":
            times: np.ndarray = np.arange(num_steps)[::-1] * (total // num_steps) + c.steps_offset
        elif c.timestep_spacing == "trailing":
            # Rounding makes arange one element too long for 62 of the 1000 possible values of num_steps.
            times = np.round(np.arange(total, 0, -total / num_steps)[:num_steps]) - 1
        else:
            times = np.round(np.linspace(0, total - 1, num_steps))[::-1]
        # With an offset, 1000 leading steps would begin at timestep 1000, one past the end.
        return [min(int(t), total - 1) for t in times]

    def steps(self, num_steps: int) -> list[Step]:
        """The steps of a run, noisiest first. Raises ValueError as `timesteps` does.

        A step leads to the timestep of the next one, so that inversion walks the same grid. With trailing spacing it
        leads T // num_steps timesteps down instead, as in diffusers.
        """
        c, alphas_cumprod = self.config, self.alphas_cumprod.tolist()
        times, interval = self.timesteps(num_steps), c.num_train_timesteps // num_steps
        if c.timestep_spacing == "trailing":
            previous = [t - interval for t in times]
        else:
            previous = [*times[1:], times[-1] - interval]
        final = 1.0 if c.set_alpha_to_one else alphas_cumprod[0]
        return [
            Step(t, alphas_cumprod[t], alphas_cumprod[prev] if prev >= 0 else final)
            for t, prev in zip(times, previous, strict=True)
        ]

    def step(
        self,
        x: Tensor,
        prediction: Tensor,
        step: Step,
        direction: Literal["sample", "invert"] = "sample",
        noise: Tensor | None = None,
    ) -> Tensor:
        """One step for a model of the config's prediction type, towards the image ("sample") or the noise ("invert").

        noise: z of a step towards the image that has noise (`Step.sigma`); None for a DDIM step.
        """
        start, end = step.alpha_cumprod, step.alpha_cumprod_prev
        if direction == "invert":
            return ddim_inverse_step(x, prediction, start, end, self.config.prediction_type)
        sigma = 0.0 if noise is None else self.noise_std(step)
        x = ddim_step(x, prediction, start, end, self.config.prediction_type, sigma)
        return x if noise is None else x + sigma * to_device(noise, x.device, x.dtype)

    def predicted_x0(self, x: Tensor, prediction: Tensor, step: Step) -> Tensor:
        """The x_0 that a model of the config's prediction type predicts at a step from x."""
        return split_prediction(x, prediction, step.alpha_cumprod, self.config.prediction_type)[1]

    def x0_between(self, x: Tensor, x_prev: Tensor, step: Step, noise: Tensor | None = None) -> Tensor:
        """The x_0 that was predicted where a step led from x to x_prev: what `step` came from. noise: as for `step`."""
        sigma = 0.0 if noise is None else self.noise_std(step)
        end = x_prev if noise is None else x_prev - sigma * to_device(noise, x_prev.device, x_prev.dtype)
        return x0_between(x, end, step.alpha_cumprod, step.alpha_cumprod_prev, sigma)

    def prediction_between(self, x: Tensor, x_prev: Tensor, step: Step, noise: Tensor | None = None) -> Tensor:
        """The prediction, of the config's type, by which a step leads from x to x_prev. noise: as for `step`."""
        return self.prediction_of(x, self.x0_between(x, x_prev, step, noise), step)

    def prediction_of(self, x: Tensor, x0: Tensor, step: Step) -> Tensor:
        """The prediction, of the config's type, at a step from x whose `predicted_x0` is x0."""
        signal, std = step.alpha_cumprod**0.5, (1 - step.alpha_cumprod) ** 0.5
        eps = (x - signal * x0) / std
        return signal * eps - std * x0 if self.config.prediction_type == "v_prediction" else eps

    def noise_std(self, step: Step) -> float:
        """Standard deviation of the noise of a step that has noise."""
        return self.ddpm_std(step) if step.sigma is None else step.sigma

    def ddpm_std(self, step: Step) -> float:
        """Standard deviation of the noise that a DDPM step adds."""
        return ddpm_std(step.alpha_cumprod, step.alpha_cumprod_prev)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The forward process (Ho et al. 2020, eq. 4): x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε. x0, noise: b c h w; t: b."""
        alpha_cumprod = self.alphas_cumprod.to(x0.device)[t][:, None, None, None]
        return alpha_cumprod**0.5 * x0 + (1 - alpha_cumprod) ** 0.5 * noise
