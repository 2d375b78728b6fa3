"""Edits of one source while a user tries settings: what an earlier edit has computed is not computed again.

Axes: c h w latents, t steps.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from operator import itemgetter
from typing import Unpack

from minip2p.attention.contract import fused
from minip2p.checkpoints.components import Components
from minip2p.p2p.editing import run_edits
from minip2p.p2p.options import EditOptionKeywords, EditOptions, check_setting_names
from minip2p.p2p.places import find_place
from minip2p.p2p.targets import EditTarget, make_targets
from minip2p.sampling.preview import OnStep
from minip2p.sampling.progress import Progress
from minip2p.sampling.trajectory import Trajectory

REMEMBERED_EDITS = 8
REMEMBERED_PLACES = 64


@dataclass(frozen=True, eq=False)
class PastEdit:
    """An edit that has run: its target, what determined its latents at each step (`step_keys`), and its run."""

    target: EditTarget
    keys: Sequence[Hashable]
    run: Trajectory

    def shared_steps(self, target: EditTarget, keys: Sequence[Hashable]) -> int:
        """After how many steps another edit of the source, which has not run, can go on from this one."""
        if target.blend_state is not None and not target.blend_state.can_resume(self.target.blend_state):
            return 0
        return next((i for i, (a, b) in enumerate(zip(self.keys, keys, strict=True)) if a != b), len(keys))


class LiveEdits:
    """Edits of one source, one after the other. `Pipeline.live` makes it.

    The source is a record, so it does not run again where an edit reads what was recorded. The last
    `REMEMBERED_EDITS` edits are remembered with their latents, and with the heat maps of each step where they have a
    local blend. A new edit begins at the first step at which it differs from the one that is equal to it for longest;
    the order of edits changes no bit of a result.
    find_place: as in `p2p.places`, of the source; the places of words are remembered too.
    """

    def __init__(self, components: Components, source: Trajectory, progress: Progress = iter):
        self.components, self.source, self.progress = components, source, progress
        self.past: deque[PastEdit] = deque(maxlen=REMEMBERED_EDITS)
        self.find_place = lru_cache(REMEMBERED_PLACES)(partial(find_place, components, source))

    def edit(self, target: str, *, on_step: OnStep | None = None, **options: Unpack[EditOptionKeywords]) -> Trajectory:
        """What `Pipeline.edit` of the source to this target returns, to the bit; options and on_step are the same.

        on_step is called at the steps that run, which are none where the same edit was made before. Where the source or
        the edit has a custom attention, all steps run, as it may store what it sees. A local blend needs the heat maps
        of its words from the first step on: it goes on from edits with a blend of the same words, heads and strides.
        Raises ValueError as `Pipeline.edit` does and for settings of a run, and TypeError for an unknown option.
        """
        known_names = [field.name for field in fields(EditOptions)]
        others = {name: value for name, value in options.items() if name not in known_names}
        check_setting_names(others)
        if others:
            raise ValueError(f"{', '.join(others)}: the source of live edits has its own settings; give them to live")
        edit_options = EditOptions(**options)
        (new,) = make_targets(self.components, self.source, [target], edit_options, self.find_place)
        is_custom = (edit_options.attend or self.source.attend) is not fused
        keys = step_keys(new, self.source, edit_options.explicit)
        known = None
        if self.past and not is_custom:
            shared, longest = max(((past.shared_steps(new, keys), past) for past in self.past), key=itemgetter(0))
            if shared == self.source.steps:
                self.past.remove(longest)  # and remember it as the last one
                self.past.append(longest)
                return longest.run
            known = longest.run.latents[: shared + 1] if shared else None
            if new.blend_state is not None and shared:
                new.blend_state.resume(shared, longest.target.blend_state)
        (run,) = run_edits(
            self.components,
            self.source,
            [new],
            attend=edit_options.attend,
            explicit=edit_options.explicit,
            known=known,
            progress=self.progress,
            on_step=on_step,
        )
        if not is_custom:
            self.past.append(PastEdit(new, keys, run))
        return run


def step_keys(target: EditTarget, source: Trajectory, explicit: bool) -> list[Hashable]:
    """What the latents after each step depend on, besides the source and the latents before it.

    Two edits of a source whose keys are equal up to a step have equal latents up to there.
    """
    skip_steps = source.conditioning.skip_steps
    return [
        (
            target.prompt,
            explicit,
            target.start_key,
            *((target.edit_key(i), target.blend_key(i)) if i >= skip_steps else ()),
        )
        for i in range(source.steps)
    ]
