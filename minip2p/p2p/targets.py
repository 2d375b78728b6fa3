"""The targets of an edit: a prompt each, with its plan and its local blend."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minip2p.attention.contract import ALL_SITES
from minip2p.attention.masks import mask_per_stride
from minip2p.checkpoints.components import Components
from minip2p.p2p.edit_plan import EditPlan, plan_edit
from minip2p.p2p.local_blend import LocalBlendState
from minip2p.p2p.options import EditOptions
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory


@dataclass(frozen=True)
class EditTarget:
    """One target of an edit. blend_state accumulates heat maps during the edit, so a target serves one edit only."""

    prompt: str
    plan: EditPlan
    blend_state: LocalBlendState | None = None

    def edit_key(self, step: int) -> Hashable:
        """Equal for two targets whose attention is edited in the same way at a step."""
        return self.plan.at(step).cache_key

    def blend_key(self, step: int) -> Hashable:
        """Equal for two targets that are blended in the same way after a step, if they were equal so far."""
        return None if self.blend_state is None else self.blend_state.cache_key(step)

    def apply_blend(self, step: int, source: Tensor, x: Tensor) -> Tensor:
        """The target's latents after a step, b c h w, blended with the source's where there is a local blend."""
        return x if self.blend_state is None else self.blend_state(step, source, x)

    @property
    def blend_mask(self) -> Tensor | None:
        """The last mask of the local blend, h w."""
        return None if self.blend_state is None else self.blend_state.last_mask


def make_targets(
    components: Components, origin: Trajectory | RunStart, prompts: Sequence[Any], options: EditOptions
) -> list[EditTarget]:
    """A target for each prompt, all with the same options. `explicit` and `attend` are for `run_edits`.

    Raises ValueError for options that the model or the prompts do not fit.
    """
    (options.sites or ALL_SITES).validate(components.unet.heads)
    source = components.text.prompt(origin.prompt)
    latent_size, sites = latent_size_of(origin), components.unet.sites
    skip_steps = origin.conditioning.skip_steps
    masks = None if options.region is None else mask_per_stride(options.region, latent_size, sites)
    targets = []
    for text in prompts:
        target = components.text.prompt(text)
        plan = plan_edit(source, target, origin.steps, options, skip_steps=skip_steps, region_masks=masks)
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
        targets.append(EditTarget(text, plan, state))
    return targets


def latent_size_of(origin: Trajectory | RunStart) -> tuple[int, int]:
    """Rows and columns of the latents of a run."""
    latents = origin.latents if isinstance(origin, Trajectory) else origin.noise
    return latents.shape[-2], latents.shape[-1]
