"""Virtual inversion (Xu et al. 2023, InfEdit): nothing is inverted.

Axes: t steps, c h w latents.
"""

from dataclasses import replace

import torch

from minip2p.checkpoints.components import Components
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunStart, check_read_guidance
from minip2p.sampling.trajectory import Trajectory
from minip2p.validation import check_number, check_seed, is_finite

DDIM_ETA = 0.1  # the default η of models that sample by DDIM: chosen on the last 42 cases of the benchmark


def virtual(
    components: Components,
    start: RunStart,
    progress: Progress = iter,
    *,
    skip: float = 0.0,
    seed: int = 0,
    eta: float | None = None,
    source_guidance_scale: float = 1.0,
) -> Trajectory:
    """Virtual inversion (Xu et al. 2023, algorithms 1 and 2): the source's latents are the picture with fresh noise,

        x_s = √ᾱ x_0 + √(1 − ᾱ) n,   n' = √(1 − η) n + √η z

    The UNet does not run. An edit corrects its prediction by the error that the model makes on the source:

        x̂_0 = x_0 + ((x − x_s) − √(1 − ᾱ) (ε − ε_s)) / √ᾱ,   x' = √ᾱ' x̂_0 + √(1 − ᾱ') z   at η = 1

    That is a step by the prediction ε + (n − ε_s), see `Trajectory` and `SourceRun.corrections`; `fresh_noise_steps`
    has the step at other η. Where ε is ε_s, the edit stays the source.

    skip: the share of the run that edits take over from the source unchanged, rounded down to whole steps. It is 1 less
    the strength of the published code, which rounds up. seed: of n and z. eta: the share of the noise that each step
    replaces; at 0 the noise stays the same. None is 1, as published, for a model that samples with fresh noise (LCM),
    and `DDIM_ETA` for the others: errors of the prediction that each step makes anew add up in many steps.
    source_guidance_scale: of ε_s. At 1, the default, the source costs one row a step.

    Deviations from the paper: edits start from the noisy picture, as in the published code, and not from pure noise.
    Deviations from the published code: the time steps are those of the model's scheduler, LCM or not, and where it is
    LCM, x̂_0 has its boundary condition. At η < 1 the source stays √ᾱ x_0 + √(1 − ᾱ) n; the code moves it in the
    direction of the last prediction.
    Raises ValueError for options that are out of range.
    """
    check_number("skip", skip, 1)
    check_seed(seed)
    if eta is None:
        fresh_noise = components.scheduler.fresh_noise
        eta = DDIM_ETA if fresh_noise is None else fresh_noise
    if not is_finite(eta) or isinstance(eta, bool) or not 0 <= eta <= 1:
        raise ValueError(f"eta must be a number from 0 to 1, not {eta!r}")
    if not is_finite(source_guidance_scale) or source_guidance_scale == 0:
        raise ValueError(f"source_guidance_scale must be a finite number and not 0, not {source_guidance_scale!r}")
    check_read_guidance(components, "source_guidance_scale", source_guidance_scale)
    if start.conditioning.uncond_every != 1 and source_guidance_scale != 1:
        raise ValueError("uncond_every: only at source_guidance_scale 1 does the source need no unconditional rows")
    x0, latents = start.noise.cpu(), []
    drawn = torch.randn(start.steps, *x0.shape[1:], generator=torch.Generator().manual_seed(seed))
    noise, z = drawn[:1], torch.cat([drawn[1:], torch.zeros_like(drawn[:1])])
    for step, fresh in zip(components.scheduler.steps(start.steps), z.split(1), strict=True):
        latents.append(step.alpha_cumprod**0.5 * x0 + (1 - step.alpha_cumprod) ** 0.5 * noise)
        noise = (1 - eta) ** 0.5 * noise + eta**0.5 * fresh
    conditioning = replace(
        start.conditioning,
        variance_noise=z,
        skip_steps=int(skip * start.steps),
        eta=float(eta),
        source_guidance_scale=float(source_guidance_scale),
    )
    return Trajectory.from_start(components, replace(start, conditioning=conditioning), torch.cat([*latents, x0]))
