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

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from minip2p.attention import fused
from minip2p.config import is_finite, is_whole
from minip2p.errors import Notice
from minip2p.null_text import NullText
from minip2p.parts import Parts
from minip2p.start import Start, Way
from minip2p.trajectory import Progress, Trajectory, finite, sample


def pivots(parts: Parts, start: Start, progress: Progress = iter) -> Tensor:
    """DDIM inversion by the conditional branch alone: start.noise is the picture's latents, 1 c h w -> z*, T+1 c h w,
    noise first.

        z*_{t+1} = √ᾱ_{t+1} x_0 + √(1 − ᾱ_{t+1}) ε(z*_t, t+1, words)

    The model is asked at the time that a step leads to, as by the published code, so that sampling asks at the same.
    """
    words, found = parts.text(start.prompt), [start.noise.to(parts.device)]
    for i, step in enumerate(progress(list(reversed(parts.sched.steps(start.steps))))):
        eps = parts.predict(found[-1], step.t, words, words, 1.0, fused)
        found.append(finite(parts, parts.sched.step(found[-1], eps, step, "invert"), start.steps - 1 - i))
    return torch.cat(found[::-1])


def ddim(parts: Parts, start: Start, progress: Progress = iter) -> Trajectory:
    """From z*_T by guided sampling, and nothing else: the baseline. It meets the picture only where w = 1."""
    return sample(parts, replace(start, noise=pivots(parts, start, progress)[:1]), progress)


def direct(parts: Parts, start: Start, progress: Progress = iter) -> Trajectory:
    """The pivots are the source's latents (Ju et al. 2023, algorithm 1): the picture is met to the bit, whatever w is,
    and a target goes by the model's own guidance."""
    return as_run(parts, start, pivots(parts, start, progress))


def negative_prompt(parts: Parts, start: Start, progress: Progress = iter) -> Trajectory:
    """The source's prompt instead of the negative one (Miyake et al. 2023, section 3.2): then ε_c − ε_u is nothing for
    the source, which so goes back the way it came, without any optimisation. Raises ValueError for a negative prompt
    besides."""
    if start.negative not in ("", start.prompt):
        raise ValueError("this inversion makes the source's prompt the negative one: it takes no other")
    return ddim(parts, replace(start, negative=start.prompt), progress)


def proximal(parts: Parts, start: Start, progress: Progress = iter, *, quantile: float = 0.7) -> Trajectory:
    """Negative-prompt inversion whose edits are guided by the large differences alone (Han et al. 2023, section 3.2):
    λ is the quantile of |ε_c − ε_u|. Their inversion guidance is not here."""
    check_number("quantile", quantile, 1)
    return negative_prompt(parts, replace(start, way=Way(proximal=quantile)), progress)


@torch.inference_mode(False)  # within one, too: it needs gradients
def null_text(
    parts: Parts,
    start: Start,
    progress: Progress = iter,
    *,
    inner: int = 10,
    rate: float = 0.01,
    stop: float = 1e-5,
    stop_more: float = 2e-5,
    checkpointing: bool = False,
) -> Trajectory:
    """Null-text inversion (Mokady et al. 2022, algorithm 1): for each step the unconditional embedding ∅_i for which
    the guided step from z̄ meets the pivot, by a fresh Adam that begins with the step before's:

        min over ∅_i of  ‖z*_{i+1} − z̄_{i+1}(z̄_i, ∅_i, words)‖²

    (of Stable Diffusion XL ∅_i is its tokens and its row of the prompt as a whole).

    At most `inner` updates a step, at a rate that falls to its half over the run; it stops where the mean squared error
    is below stop + stop_more · i. The prediction that met the bar is the one that the step is made by (the published
    code updates once more and predicts anew), so that each step costs one conditional row and at most inner + 1
    unconditional ones. Where a step ends worse than it began it is given the best embedding that it had, and a warning
    names it; the published code goes on from its last. checkpointing: the UNet makes activations again for the gradient
    instead of keeping them (Chen et al. 2016): less memory, a third more time, the same numbers.
    """
    if not is_whole(inner) or inner < 0:
        raise ValueError(f"inner must be a whole number from 0 on, not {inner!r}")
    for name, number in (("rate", rate), ("stop", stop), ("stop_more", stop_more)):
        check_number(name, number)
    start = replace(start, noise=start.noise.clone())
    ideal, words = pivots(parts, start, progress), parts.text(start.prompt)
    empty, x, made, kept, astray = parts.text.negative(start.negative).float(), ideal[:1], [ideal[:1]], [], []
    for i, step in enumerate(progress(parts.sched.steps(start.steps))):
        eps_c = parts.predict(x, step.t, words, words, 1.0, fused)
        fit = NullText(parts, x, step, eps_c, ideal[i + 1 : i + 2], start.guidance, checkpointing)
        empty, x, worse = fit(empty, inner, rate * (1 - i / (2 * start.steps)), stop + stop_more * i)
        astray += [i + 1] if worse else []
        made.append(finite(parts, x, i))
        kept.append(empty)
    if astray:
        warnings.warn(f"null-text inversion went astray at step {', '.join(map(str, astray))}; "
                      "less guidance or a smaller rate may help", Notice, stacklevel=3)  # fmt: skip
    return as_run(parts, replace(start, way=Way(torch.cat(kept).cpu())), torch.cat(made))


def edit_friendly(
    parts: Parts, start: Start, progress: Progress = iter, *, skip: float = 0.24, seed: int = 0
) -> Trajectory:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, algorithm 1): the picture noised independently
    for each step, and the noise z of the DDPM steps (η = 1) that lead from one to the next:

        x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε_t,   z_t = (x_{t−1} − μ(x_t)) / σ_t;   the last step's is 0

    skip: the share of the run that edits take from the source as it is. seed: of the noise. The last latents are x_0
    itself, where the steps with their z, gone through anew, end at μ. Source and edits have one guidance; the published
    code gives edits more.
    """
    check_number("skip", skip, 1)
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number between 0 and 2^63 - 1, not {seed!r}")
    steps, x0 = parts.sched.steps(start.steps), start.noise.to(parts.device)
    draw = torch.randn(len(steps), *x0.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x0)
    noised = parts.sched.add_noise(x0, draw, torch.tensor([step.t for step in steps]))
    latents, noise = torch.cat([noised, x0]), torch.zeros_like(draw)
    words, empty = parts.text(start.prompt), parts.text.negative(start.negative)
    for i, step in enumerate(progress(steps[:-1])):
        x = latents[i : i + 1]
        eps = parts.predict(x, step.t, empty, words, start.guidance, fused)
        mean, sigma = parts.sched.step(x, eps, step, noise=torch.zeros_like(x)), parts.sched.sigma(step)
        if sigma > 0:  # of 1000 steps the first two are at the same time
            noise[i] = finite(parts, (latents[i + 1] - mean[0]) / sigma, i)
    way = Way(noise=noise.cpu(), skip=int(skip * start.steps))
    return as_run(parts, replace(start, way=way), latents)


def check_number(name: str, given: Any, below: float = math.inf) -> None:
    if not is_finite(given) or not 0 <= given < below:
        raise ValueError(f"{name} must be a number from 0 on{'' if below == math.inf else f', below {below}'}, "
                         f"not {given!r}")  # fmt: skip


def as_run(parts: Parts, start: Start, latents: Tensor) -> Trajectory:
    return Trajectory(parts, start.prompt, latents.cpu(), start.guidance, start.negative, way=start.way)


METHODS: Mapping[str, Callable[..., Trajectory]] = MappingProxyType({
    "ddim": ddim, "direct": direct, "negative-prompt": negative_prompt, "proximal": proximal, "null-text": null_text,
    "edit-friendly": edit_friendly,
})  # fmt: skip


def chosen(method: str, options: Mapping[str, object]) -> Callable[..., Trajectory]:
    """The method of a name. Raises ValueError for one that is not known, and for options that it does not have."""
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"the method is one of {', '.join(METHODS)}, not {method!r}")
    own = [name for name, one in signature(METHODS[method]).parameters.items() if one.kind is one.KEYWORD_ONLY]
    if unknown := [name for name in options if name not in own]:
        has = f"only {', '.join(own)}" if own else "nor any other option"
        raise ValueError(f"{method} inversion has no {unknown[0]}, {has}")
    return METHODS[method]
