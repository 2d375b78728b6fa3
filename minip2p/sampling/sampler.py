"""The sampler: a plain DDIM loop, which knows nothing of edits.

Axes: t steps, c h w latents.
"""

import torch

from minip2p.attention.contract import at_step
from minip2p.checkpoints.components import Components
from minip2p.sampling.guidance import check_finite, guided_noise
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory


def sample(components: Components, start: RunStart, progress: Progress = iter) -> Trajectory:
    """Samples one picture by DDIM (Song et al. 2020, eq. 12 with σ = 0), from the noise of `start`.

    Where the conditioning of `start` has noise for each step, the steps are DDPM's (η = 1).

    Raises ValueError where the latents do not stay finite.
    """
    cond = components.text(start.prompt, start.clip_skip)
    negative = components.text.encode_negative(start.negative_prompt, start.clip_skip)
    conditioning = start.conditioning
    x = start.noise.to(components.device, copy=True)
    latents = [x]
    for i, step in enumerate(progress(components.scheduler.steps(start.steps))):
        eps = guided_noise(
            components,
            x,
            step.t,
            conditioning.uncond_at(i, negative),
            cond,
            guidance_scale=start.guidance_scale,
            attend=at_step(start.attend, i),
            proximal_quantile=conditioning.proximal_quantile,
            image=conditioning.image,
        )
        x = components.scheduler.step(x, eps, step, noise=conditioning.noise_at(i))
        latents.append(check_finite(components, x, i))
    return Trajectory.from_start(components, start, torch.cat(latents).cpu())
