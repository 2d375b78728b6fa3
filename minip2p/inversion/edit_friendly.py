"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023).

Axes: t steps, c h w latents.
"""

from dataclasses import replace

import torch

from minip2p.checkpoints.components import Components
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.guidance import FiniteCheck, guided_noise
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunStart, check_read_guidance
from minip2p.sampling.trajectory import Trajectory
from minip2p.validation import check_number, check_seed, is_finite


def edit_friendly(
    components: Components,
    start: RunStart,
    progress: Progress = iter,
    *,
    skip: float = 0.24,
    seed: int = 0,
    source_guidance_scale: float | None = None,
) -> Trajectory:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, algorithm 1).

    The picture is noised independently for each step, and z is the noise of the DDPM steps (η = 1) between them:

        x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε_t,   z_t = (x_{t−1} − μ(x_t)) / σ_t;   z of the last step is 0

    skip: the share of the run that edits take over from the source unchanged. seed: of the noise.
    source_guidance_scale: of the predictions that z is computed from; None is the guidance scale of the run, which its
    edits follow. The published code computes z at 1 (PIE-Bench) or 3.5 and edits at 7.5 or more.
    The last latents of the run are x_0 itself; where both scales are equal, the steps with their z, executed again, end
    at μ.
    Raises ValueError for options that are out of range.
    """
    check_number("skip", skip, 1)
    check_seed(seed)
    w = start.guidance_scale if source_guidance_scale is None else source_guidance_scale
    if not is_finite(w):
        raise ValueError(f"source_guidance_scale must be a finite number, not {w!r}")
    check_read_guidance(components, "source_guidance_scale", w)
    scheduler, x0 = components.scheduler, start.noise.to(components.device)
    steps = scheduler.steps(start.steps)
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(len(steps), *x0.shape[1:], generator=generator).to(x0)
    noised = scheduler.add_noise(x0, eps, torch.tensor([step.t for step in steps]))
    latents, noise = torch.cat([noised, x0]), torch.zeros_like(eps)
    words = components.text(start.prompt, start.clip_skip)
    negative = components.text.encode_negative(start.negative_prompt, start.clip_skip)
    check = FiniteCheck(components)
    for i, step in enumerate(progress(steps[:-1])):
        x = latents[i : i + 1]
        prediction = guided_noise(components, x, step.t, negative, words, guidance_scale=w)
        mean, std = scheduler.step(x, prediction, step, noise=torch.zeros_like(x)), scheduler.ddpm_std(step)
        if std > 0:  # in a run of 1000 steps the first two have the same time step
            noise[i] = check((latents[i + 1] - mean[0]) / std, i)
    check.finish()
    conditioning = Conditioning(variance_noise=noise.cpu(), skip_steps=int(skip * start.steps))
    return Trajectory.from_start(components, replace(start, conditioning=conditioning), latents.cpu())
