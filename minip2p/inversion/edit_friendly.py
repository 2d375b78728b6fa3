"""TODO: describe."""

from dataclasses import replace

import torch

from minip2p.attention.contract import fused
from minip2p.checkpoints.components import Components
from minip2p.inversion.ddim import to_trajectory
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory, check_finite
from minip2p.validation import check_number, is_integer


def edit_friendly(
    parts: Components, start: RunSettings, progress: Progress = iter, *, skip: float = 0.24, seed: int = 0
) -> Trajectory:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, algorithm 1): the picture noised independently
    for each step, and the noise z of the DDPM steps (η = 1) that lead from one to the next:

        x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε_t,   z_t = (x_{t−1} − μ(x_t)) / σ_t;   the last step's is 0

    skip: the share of the run that edits take from the source as it is. seed: of the noise. The last latents are x_0
    itself, where the steps with their z, gone through anew, end at μ. Source and edits have one guidance; the published
    code gives edits more.
    """
    check_number("skip", skip, 1)
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number between 0 and 2^63 - 1, not {seed!r}")
    steps, x0 = parts.scheduler.steps(start.steps), start.noise.to(parts.device)
    draw = torch.randn(len(steps), *x0.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x0)
    noised = parts.scheduler.add_noise(x0, draw, torch.tensor([step.t for step in steps]))
    latents, noise = torch.cat([noised, x0]), torch.zeros_like(draw)
    words, empty = parts.text(start.prompt), parts.text.encode_negative(start.negative_prompt)
    for i, step in enumerate(progress(steps[:-1])):
        x = latents[i : i + 1]
        eps = parts.guided_noise(x, step.t, empty, words, start.guidance_scale, fused)
        mean, sigma = parts.scheduler.step(x, eps, step, noise=torch.zeros_like(x)), parts.scheduler.ddpm_std(step)
        if sigma > 0:  # of 1000 steps the first two are at the same time
            noise[i] = check_finite(parts, (latents[i + 1] - mean[0]) / sigma, i)
    way = Conditioning(variance_noise=noise.cpu(), skip_steps=int(skip * start.steps))
    return to_trajectory(parts, replace(start, conditioning=way), latents)
