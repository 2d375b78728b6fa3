"""Prompt-to-Prompt editing. `edit_reference` is algorithm 1 of the paper; `run_edits` is the fast version of it.

Axes: b batch, c h w latents, t steps.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minip2p.attention.contract import QK, Attend, Site, at_step, fused, unconditional_of
from minip2p.attention.heatmaps import accumulate_heat
from minip2p.attention.store import record_qk
from minip2p.checkpoints.components import Components
from minip2p.io.tensors import layout_bytes
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.controller import OnAttention, controlled_attention
from minip2p.p2p.options import EditOptions
from minip2p.p2p.places import check_words, heat_sites, latent_size_of, read_policy
from minip2p.p2p.targets import EditTarget, make_targets
from minip2p.sampling.batches import MAX_BATCH, even_chunks
from minip2p.sampling.guidance import RunGuidance, guided_noise
from minip2p.sampling.preview import OnStep, StepPreview
from minip2p.sampling.progress import Progress
from minip2p.sampling.qk_cache import cache_layout
from minip2p.sampling.record import record_run
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import SourceRun, Trajectory
from minip2p.text.encoder import TextEmbedding

MOVES_BUDGET = 4e9  # bytes of memory for the record of a source whose objects are moved


def edit_reference(
    components: Components, start: RunStart, prompt: str, options: EditOptions | None = None
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of Hertz et al. (2022), line by line, for one target: the version to read first.

    It edits attention maps as the paper does, without batching, prefix sharing or records. `run_edits` computes the
    same; `tests/p2p/test_editing.py` compares the two.

    start: the source, a plain run from noise (`Pipeline.prepare`). prompt: the target. Returns the last latents of the
    source and of the target, 1 c h w. Raises ValueError for a custom attention function, and for a start that is not
    plain DDIM.
    """
    options = options or EditOptions()
    if start.attend is not fused or options.attend is not None or not start.conditioning.is_plain:
        raise ValueError("the reference edits plain DDIM runs with the default attention: use run_edits")
    # Where objects are moved, the source's picture is known before the edit begins.
    origin = sample(components, start) if options.objects else start
    (target,) = make_targets(components, origin, [prompt], options)
    source_text, target_text = (components.text(text, start.clip_skip) for text in (start.prompt, prompt))
    negative = components.text.encode_negative(start.negative_prompt, start.clip_skip)
    w = start.guidance_scale
    x = start.noise.to(components.device, copy=True)
    x_edit = target.start(x)  # both start from the same noise; where objects are moved, it is moved with them
    for i, step in enumerate(components.scheduler.steps(start.steps)):
        # Predict the source's noise and keep its attention, as (q, k): the maps M_t.
        source_qk: dict[Site, QK] = {}
        record = record_qk(source_qk, lambda site, queries: True)
        eps = guided_noise(components, x, step.t, negative, source_text, guidance_scale=w, attend=record)
        accumulate_source_heat(source_qk, [target], fused)
        # Predict the target's noise, with the maps M*_t replaced by Edit(M_t, M*_t, t).
        observe = target_heat_observer([[target]])
        edit = controlled_attention(source_qk, [target.plan.at(i)], explicit=True, on_attention=observe)
        eps_edit = guided_noise(components, x_edit, step.t, negative, target_text, guidance_scale=w, attend=edit)
        # One DDIM step each. With local editing, the target keeps the source's latents outside of the mask.
        x = components.scheduler.step(x, eps, step)
        x_edit = components.scheduler.step(x_edit, eps_edit, step)
        x_edit = target.share(i, x_edit, x, step)
        x_edit = target.apply_blend(i, x, x_edit)
    return x, x_edit


def run_edits(
    components: Components,
    origin: Trajectory | RunStart,
    targets: Sequence[EditTarget],
    *,
    attend: Attend | None = None,
    explicit: bool = False,
    batch: int = MAX_BATCH,
    known: Tensor | None = None,
    progress: Progress = iter,
    on_step: OnStep | None = None,
) -> list[Trajectory]:
    """Edits one source into all targets, step by step (Hertz et al. 2022, algorithm 1).

    All targets start from the source's noise, moved with their objects. At each step the source goes first, where a
    target still reads it. Targets that have been equal so far are one row, and up to `batch` rows run at once (see
    `plan_batches`).

    origin: a finished run, or one that is sampled along with its targets. attend: the targets' attention apart from the
    edit; None is the source's. explicit: form the attention maps (see `controlled_attention`). known: the first latents
    of all targets, t c h w, where an earlier edit has computed them; their blends must have the heat maps up to there.
    on_step: is called at each step that is edited with what it predicts for each target.
    Returns the targets' runs. Raises ValueError where latents do not stay finite.
    """
    conditioning, attend = origin.conditioning, attend or origin.attend
    is_blended = any(target.blend_state is not None for target in targets)
    source = SourceRun(components, origin)
    guide = RunGuidance(
        components, conditioning, steps=origin.steps, guidance_scale=origin.guidance_scale, negative=source.negative
    )
    plan = plan_batches(components, origin, targets, attend=attend, batch=batch)
    texts = {target.prompt: components.text(target.prompt, origin.clip_skip) for target in targets}
    first_latents = [] if known is None else list(known.to(components.device).split(1))
    latents = [list(first_latents) or [target.start(source.latents[0])] for target in targets]
    steps = conditioning.steps(components.scheduler, origin.steps)
    for i, step in progress(list(enumerate(steps))[len(latents[0]) - 1 :]):
        if i < conditioning.skip_steps:
            for target, states in zip(targets, latents, strict=True):
                states.append(target.start(source.latents[i + 1]))
            continue
        source_qk = source.advance(i, plan.wanted_sites[i]) if i < plan.source_steps else {}
        if source_qk and is_blended:
            accumulate_source_heat(source_qk, targets, at_step(origin.attend, i))
        attend_now = at_step(attend, i)
        predicted_x0: dict[int, Tensor] = {}
        source_noise, correction = conditioning.noise_at(i), source.corrections.get(i)
        for groups in even_chunks(plan.rows[i], plan.batch):
            first = [group[0] for group in groups]  # one target stands for its group
            control = controlled_attention(
                source_qk,
                [targets[n].plan.at(i) for n in first],
                attend_now,
                explicit=explicit,
                on_attention=target_heat_observer([[targets[n] for n in group] for group in groups]),
            )
            x = torch.cat([latents[n][i] for n in first])
            eps = guide(
                i,
                step.t,
                x,
                TextEmbedding.cat(texts[targets[n].prompt] for n in first),
                groups,
                attend=control,
                unconditional_attend=unconditional_of(attend_now),
                same_latents=plan.is_first(i, conditioning.skip_steps),
            )
            if correction is not None:
                eps = eps + torch.cat([targets[n].start(correction) for n in first])
            if on_step is not None:
                predictions = components.scheduler.predicted_x0(x, eps, step).split(1)
                predicted_x0 |= {n: row for group, row in zip(groups, predictions, strict=True) for n in group}
            noise = None if source_noise is None else torch.cat([targets[n].start(source_noise) for n in first])
            x = components.scheduler.step(x, eps, step, noise=noise)
            for group, state in zip(groups, source.check_finite(x, i).split(1), strict=True):
                for n in group:
                    target, blended = targets[n], state
                    if i < target.latent_steps(origin.steps):
                        blended = target.share(i, state, source.latents[i + 1], step)
                        blended = target.apply_blend(i, source.latents[i + 1], blended)
                    latents[n].append(blended)
        if on_step is not None:
            rows = torch.cat([predicted_x0[n] for n in range(len(targets))])
            on_step(StepPreview(components, i, origin.steps, rows))
    source.check_finite.finish()
    return [
        Trajectory(
            components,
            target.prompt,
            torch.cat(states).cpu(),
            origin.guidance_scale,
            origin.negative_prompt,
            origin.seed,
            target.conditioning(conditioning),
            attend,
            clip_skip=origin.clip_skip,
            inversion=origin.inversion,
            blend_mask=target.blend_mask,
            source_run=source,
        )
        for target, states in zip(targets, latents, strict=True)
    ]


def record_for_moves(
    components: Components, origin: Trajectory | RunStart, options: EditOptions, progress: Progress = iter
) -> Trajectory | RunStart:
    """The origin of an edit; where objects are moved, a finished run with a record of what the edit will read.

    The places of words, and the picture whose objects are moved, must be known before the first step. So the source
    goes first, through the steps at which the edit reads it; the edit then reads its record, and no row of the UNet is
    added. A record that it has is used, and a finished run without words to find stays as it is.
    Raises ValueError for words that `check_words` refuses, and where the record would take more than `MOVES_BUDGET`.
    """
    if not options.objects:
        return origin
    check_words(components.text.prompt(origin.prompt), options.objects)
    words = [item.word for item in options.objects if item.move.mask is None]
    policy = read_policy(origin, options)
    wanted, steps = heat_sites(components, origin), range(*policy.cross_steps)
    is_readable = not words or origin.guidance_scale == 0
    if isinstance(origin, Trajectory) and (is_readable or all(origin.is_recorded(i, wanted) for i in steps)):
        return origin
    latent, count = latent_size_of(origin), len(components.text.prompt(origin.prompt).ids)
    layout = cache_layout(components.unet, latent, count, origin.steps, policy=policy, dtype=components.dtype)
    if layout_bytes(layout) > MOVES_BUDGET:
        purpose = f"find {words[0]!r}" if words else "move objects"
        advice = "record it in a file before, by record(run, file=...)" + (", or give the object's mask" * bool(words))
        raise ValueError(
            f"to {purpose}, the source would be recorded in {layout_bytes(layout) / 1e9:.1f} GB of memory: {advice}"
        )
    return record_run(components, origin, policy, dtype=components.dtype, budget=MOVES_BUDGET, progress=progress)


def accumulate_source_heat(source_qk: Mapping[Site, QK], targets: Sequence[EditTarget], attend: Attend) -> None:
    """Adds the source's attention to the heat maps of the targets' blends. attend: the source's attention."""
    heatmaps = [target.blend_state.source for target in targets if target.blend_state is not None]
    if heatmaps:
        for site, (q, k) in source_qk.items():
            accumulate_heat(heatmaps, site, lambda v, q=q, k=k, site=site: attend(q, k, v, site), q)  # type: ignore[misc]


def target_heat_observer(groups: Sequence[Sequence[EditTarget]]) -> OnAttention:
    """Adds the targets' attention after the edit to the heat maps of their blends, as the paper's masks do.

    groups: the targets that each row stands for.
    """
    heatmaps = [[target.blend_state.target for target in group if target.blend_state is not None] for group in groups]
    return lambda row, site, q, apply: accumulate_heat(heatmaps[row], site, apply, q)
