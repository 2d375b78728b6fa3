"""The sampler: a plain DDIM loop, which knows nothing of edits.

Axes: b pictures, t steps, c h w latents.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minip2p.attention.contract import at_step, fused
from minip2p.checkpoints.components import Components
from minip2p.sampling.batches import MAX_BATCH, even_chunks
from minip2p.sampling.guidance import FiniteCheck, RunGuidance
from minip2p.sampling.preview import OnStep, StepPreview
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.text.encoder import TextEmbedding

# (step counted from 0, latents b c h w, their guided prediction b c h w) -> the prediction that the step takes.
Correction = Callable[[int, Tensor, Tensor], Tensor]


def sample(
    components: Components,
    start: RunStart,
    progress: Progress = iter,
    on_step: OnStep | None = None,
    correct: Correction | None = None,
) -> Trajectory:
    """Samples one picture: `sample_all` of a single start."""
    return sample_all(components, [start], progress, on_step, correct)[0]


def sample_all(
    components: Components,
    starts: Sequence[RunStart],
    progress: Progress = iter,
    on_step: OnStep | None = None,
    correct: Correction | None = None,
) -> list[Trajectory]:
    """Samples pictures, each from the noise of its start: by DDIM (Song et al. 2020, eq. 12 with σ = 0).

    Where the conditioning of the starts has noise for each step, it says which steps these are (`Conditioning.steps`).

    starts: at least one. They share everything but prompt, seed and noise, also the noise of each step. Up to
    `MAX_BATCH` rows run at once; but a custom attention may store what it sees, so it sees all pictures at once, one
    row each. on_step: is called at each step with what it predicts. correct: changes each prediction, as guidance by a
    gradient does (see `minip2p.baselines`).
    Raises ValueError where the latents do not stay finite.
    """
    start, count = starts[0], len(starts)
    batches = even_chunks(starts, MAX_BATCH if start.attend is fused else count)
    sizes = [len(batch) for batch in batches]
    words = [TextEmbedding.cat(components.text(each.prompt, each.clip_skip) for each in batch) for batch in batches]
    negative = components.text.encode_negative(start.negative_prompt, start.clip_skip)
    conditioning = start.conditioning
    guide = RunGuidance(
        components, conditioning, steps=start.steps, guidance_scale=start.guidance_scale, negative=negative
    )
    numbers = even_chunks([[n] for n in range(count)], MAX_BATCH if start.attend is fused else count)
    x = torch.cat([each.noise for each in starts]).to(components.device)  # b c h w
    latents, check = [x], FiniteCheck(components)
    for i, step in enumerate(progress(conditioning.steps(components.scheduler, start.steps))):
        attend = at_step(start.attend, i)
        predictions = [
            guide(i, step.t, rows, cond, chunk, attend=attend)
            for rows, cond, chunk in zip(x.split(sizes), words, numbers, strict=True)
        ]
        eps = torch.cat(predictions)
        if correct is not None:
            eps = correct(i, x, eps)
        if on_step is not None:
            on_step(StepPreview(components, i, start.steps, components.scheduler.predicted_x0(x, eps, step)))
        noise = [z for each in starts if (z := each.conditioning.noise_at(i)) is not None]
        x = components.scheduler.step(x, eps, step, noise=torch.cat(noise) if noise else None)
        latents.append(check(x, i))
    check.finish()
    return [
        Trajectory.from_start(components, each, torch.cat([x[n : n + 1] for x in latents]).cpu())
        for n, each in enumerate(starts)
    ]
