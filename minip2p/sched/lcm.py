"""The sampler of latent consistency models (Luo et al. 2023, LCM, arXiv 2310.04378, algorithm 3), as DDIM steps.

A consistency model predicts the end of the trajectory from each of its points. Sampling goes there, adds fresh noise,
and goes there again: DDIM steps of which all noise is replaced (`fresh_noise_steps` at η = 1). What differs from
`DDIMScheduler` is the time steps, which are those of the distillation, and the boundary condition.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from minip2p.config import LCMSchedulerConfig
from minip2p.sched.ddim import DDIMScheduler, Step
from minip2p.validation import is_integer

SIGMA_DATA = 0.5  # of the boundary condition


@dataclass(frozen=True)
class LCMScheduler(DDIMScheduler):
    """diffusers' LCMScheduler. Inversion by DDIM takes the same time steps without fresh noise."""

    config: LCMSchedulerConfig

    fresh_noise: ClassVar[float | None] = 1.0
    default_steps: ClassVar[int] = 4
    few_steps: ClassVar[int] = 4

    def timesteps(self, num_steps: int) -> list[int]:
        """The timesteps of a run, noisiest first: some of those k, 2k, … of the distillation, less 1; evenly spaced.

        Raises ValueError unless num_steps is an integer from 1 to `original_inference_steps`.
        """
        c, count = self.config, self.config.original_inference_steps
        if not is_integer(num_steps) or not 1 <= num_steps <= count:
            raise ValueError(
                f"steps must lie between 1 and {count} for this model, which is distilled for a few, not {num_steps!r}"
            )
        spacing = c.num_train_timesteps // count
        indices = np.floor(np.linspace(0, count, num_steps, endpoint=False)).astype(int)
        return [(count - int(i)) * spacing - 1 for i in indices]

    def steps(self, num_steps: int) -> list[Step]:
        """The steps of a run, noisiest first; the last leads to x_0 itself. Raises ValueError as `timesteps` does."""
        times, alphas_cumprod = self.timesteps(num_steps), self.alphas_cumprod.tolist()
        shares = [alphas_cumprod[t] for t in times]
        return [Step(*step) for step in zip(times, shares, [*shares[1:], 1.0], strict=True)]

    def boundary_scalings(self, t: int) -> tuple[float, float]:
        """c_skip and c_out of f(x, t) = c_skip x + c_out x_0, which make f(x, 0) = x (Song et al. 2023, eq. 5)."""
        scaled = self.config.timestep_scaling * t
        total = scaled**2 + SIGMA_DATA**2
        return SIGMA_DATA**2 / total, scaled / total**0.5

    def predicted_x0(self, x: Tensor, prediction: Tensor, step: Step) -> Tensor:
        """f(x, t): the end of the trajectory through x that a model of the config's prediction type predicts."""
        c_skip, c_out = self.boundary_scalings(step.t)
        return c_skip * x + c_out * super().predicted_x0(x, prediction, step)

    def prediction_of(self, x: Tensor, x0: Tensor, step: Step) -> Tensor:
        c_skip, c_out = self.boundary_scalings(step.t)
        return super().prediction_of(x, (x0 - c_skip * x) / c_out, step)

    def step(
        self,
        x: Tensor,
        prediction: Tensor,
        step: Step,
        direction: Literal["sample", "invert"] = "sample",
        noise: Tensor | None = None,
    ) -> Tensor:
        """One step, as DDIM's. Towards the image it is the step by the prediction whose x_0 is f(x, t)."""
        if direction == "sample":
            prediction = super().prediction_of(x, self.predicted_x0(x, prediction, step), step)
        return super().step(x, prediction, step, direction, noise)
