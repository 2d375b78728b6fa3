"""Photographs as runs: inversions. Each is a function that returns a `Trajectory`, which every edit and every record
takes as it takes a generated one.

All but the last begin with DDIM inversion (Song et al. 2020, section 4.3) by the conditional branch alone, w = 1: the
*pivots* z*_T … z*_0. They differ in how the source is led along the pivots when w is not 1:

| method | the source goes | what the run carries to its edits |
|---|---|---|
| ddim | from z*_T by itself, and so astray | nothing |
| negative_prompt | the same, its own prompt as the negative one (Miyake et al. 2023) | that negative prompt |
| proximal | the same | that, and a guidance that leaves small differences out (Han et al. 2023) |
| null_text | by an unconditional embedding that is learnt for each step (Mokady et al. 2022) | the embeddings |
| direct | the pivots themselves (Ju et al. 2023: their offsets, added to the source alone, lead there) | nothing |
| edit_friendly | latents that are noised independently (Huberman-Spiegelglas et al. 2023) | the noise z of each step |

Axes: t steps, c h w latents, n tokens, d width of their embedding.
"""

from dataclasses import replace

import torch
from torch import Tensor

from minip2p.attention.contract import fused
from minip2p.checkpoints.components import Components
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory, check_finite, sample
from minip2p.validation import check_number


def ddim_inversion(parts: Components, start: RunSettings, progress: Progress = iter) -> Tensor:
    """DDIM inversion by the conditional branch alone: start.noise is the picture's latents, 1 c h w -> z*, T+1 c h w,
    noise first.

        z*_{t+1} = √ᾱ_{t+1} x_0 + √(1 − ᾱ_{t+1}) ε(z*_t, t+1, words)

    The model is asked at the time that a step leads to, as by the published code, so that sampling asks at the same.
    """
    words, found = parts.text(start.prompt), [start.noise.to(parts.device)]
    for i, step in enumerate(progress(list(reversed(parts.scheduler.steps(start.steps))))):
        eps = parts.guided_noise(found[-1], step.t, words, words, 1.0, fused)
        found.append(check_finite(parts, parts.scheduler.step(found[-1], eps, step, "invert"), start.steps - 1 - i))
    return torch.cat(found[::-1])


def ddim(parts: Components, start: RunSettings, progress: Progress = iter) -> Trajectory:
    """From z*_T by guided sampling, and nothing else: the baseline. It meets the picture only where w = 1."""
    return sample(parts, replace(start, noise=ddim_inversion(parts, start, progress)[:1]), progress)


def direct_inversion(parts: Components, start: RunSettings, progress: Progress = iter) -> Trajectory:
    """The pivots are the source's latents (Ju et al. 2023, algorithm 1): the picture is met to the bit, whatever w is,
    and a target goes by the model's own guidance."""
    return to_trajectory(parts, start, ddim_inversion(parts, start, progress))


def negative_prompt(parts: Components, start: RunSettings, progress: Progress = iter) -> Trajectory:
    """The source's prompt instead of the negative one (Miyake et al. 2023, section 3.2): then ε_c − ε_u is nothing for
    the source, which so goes back the way it came, without any optimisation. Raises ValueError for a negative prompt
    besides."""
    if start.negative_prompt not in ("", start.prompt):
        raise ValueError("this inversion makes the source's prompt the negative one: it takes no other")
    return ddim(parts, replace(start, negative_prompt=start.prompt), progress)


def proximal(parts: Components, start: RunSettings, progress: Progress = iter, *, quantile: float = 0.7) -> Trajectory:
    """Negative-prompt inversion whose edits are guided by the large differences alone (Han et al. 2023, section 3.2):
    λ is the quantile of |ε_c − ε_u|. Their inversion guidance is not here."""
    check_number("quantile", quantile, 1)
    return negative_prompt(parts, replace(start, conditioning=Conditioning(proximal_quantile=quantile)), progress)


def to_trajectory(parts: Components, start: RunSettings, latents: Tensor) -> Trajectory:
    return Trajectory(
        parts, start.prompt, latents.cpu(), start.guidance_scale, start.negative_prompt, conditioning=start.conditioning
    )
