"""Guidance by the gradient of an energy: what `self_guidance` and `feature_guidance` have in common.

An energy E is a function of the latents x that is small where a picture shows what it should. Its gradient is added to
the noise that is predicted, as in classifier guidance (Dhariwal & Nichol 2021, section 4.2), so x goes downhill:

    ε' = ε + s ∇E(x)

The sampler takes ε' from a function (`sampling.sampler.Correction`), and knows nothing of energies.

Cost: each evaluation of an energy runs one conditional row of the UNet, and one of the source at the same step. The
counter of rows counts both. It does not count the way back through the row, which takes about as long as two rows more.

Axes: c h w latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minip2p.attention.contract import Attend
from minip2p.pipeline import Pipeline
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.sched import DDIMScheduler, Step
from minip2p.validation import is_finite

UNDERFLOW_GUARD = 1024.0  # energies are multiplied by this and gradients divided: float16 has no small numbers


def gradients(energies: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> list[Tensor]:
    """The gradient of each energy at x, float32 and of the shape of x, from one evaluation of all."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        values = list(energies(x))
        return [
            torch.autograd.grad(UNDERFLOW_GUARD * value, x, retain_graph=value is not values[-1])[0] / UNDERFLOW_GUARD
            for value in values
        ]


def add_noise_shift(scheduler: DDIMScheduler, step: Step, prediction: Tensor, shift: Tensor) -> Tensor:
    """The prediction whose noise ε is larger by `shift`, while x stays what it is.

    v = (ε − √(1 − ᾱ) x) / √ᾱ, so a prediction of v is larger by shift / √ᾱ. Where x has no signal (ᾱ = 0), ε is x
    whatever v is, and the prediction is not changed.
    """
    if step.alpha_cumprod == 0:
        return prediction
    is_v = scheduler.config.prediction_type == "v_prediction"
    return prediction + (shift / step.alpha_cumprod**0.5 if is_v else shift)


def checked_source(pipe: Pipeline, run: Trajectory, strength: float) -> Trajectory:
    """The source with the networks of `pipe`, which count its rows.

    Raises ValueError for a run of another model, for one whose steps are not plain DDIM, and for a strength below 0.
    """
    if not isinstance(pipe.resolve_source(run, {}), Trajectory):
        raise ValueError("guidance by gradients follows a finished run: give a run as the source, not a prompt")
    if run.conditioning.image is not None:
        raise ValueError("this run follows a picture, which shows the objects where they are: they cannot be moved")
    if run.conditioning.variance_noise is not None:
        raise ValueError("guidance by gradients takes DDIM steps, and the steps of this run have noise of their own")
    if not is_finite(strength) or strength < 0:
        raise ValueError(f"the strength of guidance must be a number from 0 on, not {strength!r}")
    return replace(run, components=pipe.components)


def restart(run: Trajectory, noise: Tensor, attend: Attend) -> RunStart:
    """The settings of a run, to sample it from `noise` with another attention. noise: 1 c h w."""
    return RunStart(
        run.prompt,
        noise,
        steps=run.steps,
        guidance_scale=run.guidance_scale,
        negative_prompt=run.negative_prompt,
        clip_skip=run.clip_skip,
        seed=run.seed,
        inversion=run.inversion,
        attend=attend,
        conditioning=run.conditioning,
    )
