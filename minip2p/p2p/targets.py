"""The targets of an edit: a prompt each, with its plan and its local blend."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import ALL_SITES
from minip2p.attention.masks import mask_per_stride, same_dtype
from minip2p.checkpoints.components import Components
from minip2p.p2p.algebra import cache_key
from minip2p.p2p.alignment import refine_alignment
from minip2p.p2p.edit_plan import EditPlan, plan_edit
from minip2p.p2p.local_blend import LocalBlendState
from minip2p.p2p.options import EditOptions
from minip2p.p2p.places import FindPlace, latent_size_of, place_objects
from minip2p.p2p.schedules import equalizer
from minip2p.p2p.warp import LatentWarp, PlacedObject, attention_warps, move_pixels
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.sched.ddim import Step
from minip2p.text.prompt import Prompt


@dataclass(frozen=True)
class EditTarget:
    """One target of an edit. blend_state accumulates heat maps during the edit, so a target serves one edit only.

    warp: of the latents, where objects are moved.
    """

    prompt: str
    plan: EditPlan
    blend_state: LocalBlendState | None = None
    warp: LatentWarp | None = None

    def edit_key(self, step: int) -> Hashable:
        """Equal for two targets that are edited in the same way at a step, and whose objects are moved in the same way.

        So targets whose objects are moved differently are never equal. Which cells are moved counts: the pixels of
        their masks may differ.
        """
        key = self.plan.at(step).cache_key
        return key if self.warp is None else (key, self.warp.cache_key)

    @property
    def start_key(self) -> Hashable:
        """Equal for two targets that start from the same noise."""
        return None if self.warp is None else cache_key(self.warp.noise_cells)

    def start(self, noise: Tensor) -> Tensor:
        """The target's noise, … h w, from the source's: moved with its objects."""
        return noise if self.warp is None else self.warp.move_noise(noise)

    def latent_steps(self, steps: int) -> int:
        """After how many of the first steps the target reads the source's latents. steps: of the run."""
        if self.blend_state is not None or (self.warp is not None and self.warp.keeps_rest):
            return steps
        return 0 if self.warp is None else int(self.warp.until.max())

    def conditioning(self, source: Conditioning) -> Conditioning:
        """The target's conditioning from the source's: with the noise of each step moved."""
        if self.warp is None or source.variance_noise is None:
            return source
        return replace(source, variance_noise=self.start(source.variance_noise))

    def share(self, i: int, x: Tensor, after: Tensor, step: Step) -> Tensor:
        """The target's latents after step i with those of moved objects from the source (`LatentWarp.share`).

        after: the source's latents after the step.
        """
        return x if self.warp is None or i >= self.warp.until.max() else self.warp.share(i, x, after, step)

    def blend_key(self, step: int) -> Hashable:
        """Equal for two targets that are blended in the same way after a step, if they were equal so far."""
        return None if self.blend_state is None else self.blend_state.cache_key(step)

    def apply_blend(self, step: int, source: Tensor, x: Tensor) -> Tensor:
        """The target's latents after a step, b c h w, blended with the source's where there is a local blend.

        Where objects were and where they are now, the target's latents stay.
        """
        blended = x if self.blend_state is None else self.blend_state(step, source, x)
        if self.warp is None:
            return blended
        return self.warp.keep_rest(x, source if self.blend_state is None and self.warp.keeps_rest else blended)

    @property
    def blend_mask(self) -> Tensor | None:
        """The last mask of the local blend and the places of objects that may change, h w; None without either."""
        mask = None if self.blend_state is None else self.blend_state.last_mask
        if self.warp is None or (mask is None and not self.warp.keeps_rest):
            return None if mask is None else mask.cpu()
        places = self.warp.may_change(len(self.plan.self_alpha))
        return places if mask is None else torch.maximum(*same_dtype(mask.cpu(), places))


def make_targets(
    components: Components,
    origin: Trajectory | RunStart,
    prompts: Sequence[Any],
    options: EditOptions,
    find: FindPlace | None = None,
) -> list[EditTarget]:
    """A target for each prompt, all with the same options. `explicit` and `attend` are for `run_edits`.

    Objects that are moved need a finished run as the origin. find: see `place_objects`.
    Raises ValueError for options that the model or the prompts do not fit.
    """
    (options.sites or ALL_SITES).validate(components.unet.heads)
    source = components.text.prompt(origin.prompt)
    latent_size, sites = latent_size_of(origin), components.unet.sites
    skip_steps = origin.conditioning.skip_steps
    masks = None if options.region is None else mask_per_stride(options.region, latent_size, sites)
    objects = place_objects(components, origin, options, find)
    warps, x0 = None, torch.empty(0)
    if objects:
        if not isinstance(origin, Trajectory):
            raise ValueError("objects are moved in a finished run")
        warps, x0 = attention_warps(objects, latent_size, sites), origin.latents[-1:].to(components.device)
        moved_x0 = components.encode(move_pixels(objects, components.decode(x0)[0])[None])
    targets = []
    for text in prompts:
        target = components.text.prompt(text)
        plan = plan_edit(
            source,
            target,
            origin.steps,
            options,
            skip_steps=skip_steps,
            region_masks=masks,
            objects=objects,
            warps=warps,
        )
        state = None
        if options.local_blend is not None:
            state = LocalBlendState.start(
                options.local_blend,
                source,
                target,
                steps=origin.steps,
                skip_steps=skip_steps,
                latent_size=latent_size,
                sites=sites,
            )
        warp = None
        if objects:
            new_words = changed_tokens(source, target, options)
            until = [share_until(placed, not new_words, origin.steps, skip_steps) for placed in objects]
            keeps_rest = new_words.issubset(plan.shown_objects) and options.local_blend is None
            warp = LatentWarp.of_objects(objects, until, x0, moved_x0, keeps_rest=keeps_rest)
        targets.append(EditTarget(text, plan, state, warp))
    return targets


def changed_tokens(source: Prompt, target: Prompt, options: EditOptions) -> set[int]:
    """The positions of the target's tokens that are new, or whose attention is weighted."""
    _, kappa = refine_alignment(source, target)
    changed = {j for j in range(target.eos) if not kappa[j]}
    if options.reweight:
        c = equalizer(options.reweight, target, parity=options.parity)
        changed |= set((c != 1).nonzero().flatten().tolist())
    return changed


def share_until(placed: PlacedObject, is_same: bool, steps: int, skip_steps: int) -> int:
    """The step before which an object has the source's latents. is_same: whether the edit changes places alone."""
    until = placed.edit.move.until
    if until is None:
        until = 1.0 if is_same else 0.0
    return min(skip_steps + int(until * steps), steps)
