"""TODO: describe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minip2p.attention.masks import mask_per_stride
from minip2p.checkpoints.components import Components
from minip2p.io.images import read_mask
from minip2p.p2p.edit_plan import EditPlan, plan_edit
from minip2p.p2p.local_blend import LocalBlend, LocalBlendState
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory


@dataclass(frozen=True)
class EditTarget:
    """One target of an edit: its prompt, its edit, and its blending if there is one, which sums heat as the edit goes:
    it serves one edit."""

    prompt: str
    plan: EditPlan
    blend_state: LocalBlendState | None = None

    def apply_blend(self, step: int, source: Sequence[Tensor], x: Tensor) -> Tensor:
        """The latents after a step, b c h w; source: the source's of all steps so far."""
        return x if self.blend_state is None else self.blend_state(step, source[step + 1], x)

    @property
    def mask(self) -> Tensor | None:
        return None if self.blend_state is None else self.blend_state.last_mask


def make_targets(
    components: Components,
    origin: Trajectory | RunSettings,
    prompts: Sequence[Any],
    local_blend: LocalBlend | None,
    region: Any,
    **how: Any,
) -> list[EditTarget]:
    """A target for each prompt, all of one blend and one mask H W to stay within. how: as `plan_edit` takes it. Raises
    ValueError for what is no edit of the origin."""
    *_, rows, columns = (origin.latents if isinstance(origin, Trajectory) else origin.noise).shape
    size, old, targets = (rows, columns), components.text.prompt(origin.prompt), []
    inside = None if region is None else mask_per_stride(read_mask(region), size, components.unet.sites)
    for prompt in prompts:
        new = components.text.prompt(prompt)
        plan = plan_edit(old, new, origin.steps, region=inside, **how)
        begun = (
            None
            if local_blend is None
            else LocalBlendState.start(local_blend, old, new, origin.steps, size, components.unet.sites)
        )
        targets.append(EditTarget(prompt, plan, begun))
    return targets
