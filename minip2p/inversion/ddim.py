"""DDIM inversion (Song et al. 2020, section 4.3), and the methods that need nothing else.

Axes: t steps, c h w latents.
"""

from dataclasses import replace

import torch
from torch import Tensor

from minip2p.checkpoints.components import Components
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.guidance import FiniteCheck, conditional_scale, guided_noise
from minip2p.sampling.progress import Progress
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.validation import check_number


def ddim_inversion(components: Components, start: RunStart, progress: Progress = iter) -> Tensor:
    """DDIM inversion by the conditional branch alone: the latents of a photograph, 1 c h w -> the pivots z*, t+1 c h w.

    The pivots are in sampling order, noise first. A step is

        z*_{t+1} = √ᾱ_{t+1} x_0 + √(1 − ᾱ_{t+1}) ε(z*_t, t+1, words)

    The model is evaluated at the time step that the inversion step leads to, as in the published code, so that sampling
    evaluates it at the same time steps.
    """
    words, w = components.text(start.prompt, start.clip_skip), conditional_scale(components, start.guidance_scale)
    latents, check = [start.noise.to(components.device)], FiniteCheck(components)
    for i, step in enumerate(progress(list(reversed(components.scheduler.steps(start.steps))))):
        eps = guided_noise(components, latents[-1], step.t, words, words, guidance_scale=w)
        x = components.scheduler.step(latents[-1], eps, step, "invert")
        latents.append(check(x, start.steps - 1 - i))
    check.finish()
    return torch.cat(latents[::-1])


def ddim(components: Components, start: RunStart, progress: Progress = iter) -> Trajectory:
    """Guided sampling from z*_T and nothing else: the baseline. It reconstructs the photograph only where w = 1."""
    return sample(components, replace(start, noise=ddim_inversion(components, start, progress)[:1]), progress)


def direct_inversion(components: Components, start: RunStart, progress: Progress = iter) -> Trajectory:
    """Direct inversion (Ju et al. 2023, algorithm 1): the latents of the source are the pivots, whatever w is.

    The paper adds the offsets that lead the source back to the pivots; using the pivots is the same without rounding.
    The targets follow the model's own guidance.
    """
    return Trajectory.from_start(components, start, ddim_inversion(components, start, progress).cpu())


def negative_prompt(components: Components, start: RunStart, progress: Progress = iter) -> Trajectory:
    """Negative-prompt inversion (Miyake et al. 2023): the source's prompt is the negative prompt.

    Then ε_c − ε_u is 0 for the source, which returns the way it came without any optimisation.
    Raises ValueError for another negative prompt.
    """
    if start.negative_prompt not in ("", start.prompt):
        raise ValueError("this inversion makes the source's prompt the negative prompt: it takes no other")
    return ddim(components, replace(start, negative_prompt=start.prompt), progress)


def proximal(
    components: Components, start: RunStart, progress: Progress = iter, *, quantile: float = 0.7
) -> Trajectory:
    """Negative-prompt inversion with proximal guidance (Han et al. 2023): the guidance of its edits leaves out
    small differences.

    quantile: λ is this quantile of |ε_c − ε_u| of a target alone, see `guidance.soft_threshold`. The published code
    takes a quantile q over source and target together. The source's difference is 0, so q there is 2 q − 1 here: its
    default .7 is .4, and PIE-Bench's .75 is .5. Where q is at most .5 its threshold is 0.
    The paper's inversion guidance is not implemented. PIE-Bench's code asks for it but does not hand the option on.
    Raises ValueError.
    """
    check_number("quantile", quantile, 1)
    conditioning = Conditioning(proximal_quantile=quantile)
    return negative_prompt(components, replace(start, conditioning=conditioning), progress)
