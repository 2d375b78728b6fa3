"""Source and targets, step by step: the edits of a run, and of a run that is sampled as it is read.

Axes: b batch, c h w latents; e targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from minip2p.attention.contract import QK, Attend, Site, at_step, fused
from minip2p.attention.heatmaps import accumulate_heat
from minip2p.checkpoints.components import Components
from minip2p.p2p.batching import even_chunks, plan_batches
from minip2p.p2p.controller import OnAttention, controlled_attention
from minip2p.p2p.targets import EditTarget
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import SourceRun, Trajectory, check_finite


def run_edits(
    parts: Components,
    origin: Trajectory | RunSettings,
    targets: Sequence[EditTarget],
    *,
    attend: Attend | None = None,
    explicit: bool = False,
    batch: int = 8,
    progress: Progress = iter,
) -> list[Trajectory]:
    """Edits a source into all targets, step by step (Hertz et al. 2022, algorithm 1). Each starts from the source's
    noise; at each step the source goes first, where a target still reads it, and the targets follow.

    Targets that have agreed in all that was done to them are one row (`shared`); up to `batch` rows run at once. But an
    `attend` of one's own, which may keep what it sees, sees all targets at once, a row each.
    attend: the targets' attention besides the edit, the source's own where None. in_maps: the explicit execution.
    """
    source, attend, plan = SourceRun(parts, origin), attend or origin.attend, plan_batches(parts, origin, targets)
    if attend is not fused:
        plan, batch = replace(plan, rows=[[[n] for n in range(len(targets))]] * origin.steps), len(targets)
    texts = {target.prompt: parts.text(target.prompt) for target in targets}
    latents = [[source.latents[0]] for _ in targets]
    for i, step in enumerate(progress(list(parts.scheduler.steps(origin.steps)))):
        if i < origin.conditioning.skip_steps:
            for states in latents:
                states.append(source.latents[i + 1])
            continue
        found = source.advance(i, step, plan.wanted_sites[i]) if i < plan.source_steps else {}
        accumulate_source_heat(found, targets, origin.attend, i)
        for some in even_chunks(plan.rows[i], batch):
            rules = [targets[row[0]].plan.at(i) for row in some]
            watch = target_heat_observer([[targets[n] for n in row] for row in some])
            injected = controlled_attention(found, rules, at_step(attend, i), explicit=explicit, on_attention=watch)
            before = torch.cat([latents[row[0]][i] for row in some])
            conditional = torch.cat([texts[targets[row[0]].prompt] for row in some])
            eps = parts.guided_noise(
                before,
                step.t,
                source.uncond_embedding(i),
                conditional,
                origin.guidance_scale,
                injected,
                i == origin.conditioning.skip_steps,
                origin.conditioning.proximal_quantile,
                origin.conditioning.image,
            )
            after = check_finite(
                parts, parts.scheduler.step(before, eps, step, noise=origin.conditioning.noise_at(i)), i
            ).split(1)
            for row, x in zip(some, after, strict=True):
                for n in row:
                    latents[n].append(targets[n].apply_blend(i, source.latents, x))
    return [
        Trajectory(
            parts,
            target.prompt,
            torch.cat(states).cpu(),
            origin.guidance_scale,
            origin.negative_prompt,
            origin.seed,
            origin.conditioning,
            attend,
            blend_mask=target.mask,
            source_run=source,
        )
        for target, states in zip(targets, latents, strict=True)
    ]


def accumulate_source_heat(found: Mapping[Site, QK], targets: Sequence[EditTarget], attend: Attend, step: int) -> None:
    """Sums the source's heat, by the attention that the source runs with."""
    heats = [target.blend_state.source for target in targets if target.blend_state is not None]
    if found and heats:
        attend = at_step(attend, step)
        for site, (q, k) in found.items():
            accumulate_heat(heats, site, lambda v, q=q, k=k, site=site: attend(q, k, v, site), q)  # type: ignore[misc]


def target_heat_observer(rows: Sequence[Sequence[EditTarget]]) -> OnAttention:
    """Sums the targets' heat after the edit, as the masks of the paper do. rows: the targets that a row stands for."""
    heats = [[target.blend_state.target for target in row if target.blend_state is not None] for row in rows]
    return lambda row, site, q, values: accumulate_heat(heats[row], site, values, q)
