"""The plan of an edit: which pair (R, S) holds for a target at each step and site.

Axes: i queries, j words.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minip2p.attention.contract import ALL_SITES, Site, SiteFilter
from minip2p.p2p.algebra import (
    IDENTITY,
    INJECT,
    AttentionEdit,
    MaskedEdit,
    Matrix,
    cache_key,
    dense,
    refine_edit,
    swap_edit,
)
from minip2p.p2p.alignment import infer_kind, refine_alignment, swap_mapper
from minip2p.p2p.options import EditOptions
from minip2p.p2p.published import published_swap_mapper
from minip2p.p2p.schedules import cross_replace_alpha, equalizer, step_weights
from minip2p.p2p.warp import PlacedObject, StrideWarp, WarpedEdit
from minip2p.text.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Region:
    """Where attention may change. masks: m of the queries by stride, i each. outside: (R', 0), for the words there."""

    masks: Mapping[int, Tensor]
    outside: AttentionEdit


@dataclass(frozen=True, eq=False)
class Movement:
    """How objects are moved. warps: by stride. dropped: the target's tokens that stand for the objects, to which the
    holes do not attend. in_hole: (0, S') of the cross-attention in the holes.
    """

    warps: Mapping[int, StrideWarp]
    dropped: tuple[int, ...]
    in_hole: AttentionEdit

    @property
    def cache_key(self) -> Hashable:
        """Equal for movements that have the same effect."""
        geometry = tuple(warp.cache_key for warp in self.warps.values())
        return geometry, self.dropped, cache_key(self.in_hole.S)


@dataclass(frozen=True)
class StepEdit:
    """What one target takes from the source at one step: cross-attention by words, self-attention by the share α."""

    cross: AttentionEdit
    self_alpha: float
    self_max_queries: int
    sites: SiteFilter = ALL_SITES
    region: Region | None = None
    movement: Movement | None = None

    def at_site(self, site: Site, queries: int) -> AttentionEdit | MaskedEdit | WarpedEdit:
        """The pair that holds at a site with so many queries."""
        if not self.sites.includes(site) or (not site.cross and queries > self.self_max_queries):
            return IDENTITY
        pair = self.cross if site.cross else injection(float(self.self_alpha))
        edit: AttentionEdit | MaskedEdit = pair
        if self.region is not None:
            outside = self.region.outside if site.cross else INJECT
            edit = MaskedEdit(pair, outside, self.region.masks[site.stride][:, None])
        if self.movement is None:
            return edit
        warp = self.movement.warps[site.stride]
        dropped = self.movement.dropped if site.cross else warp.left_out
        if not edit.reads and not len(warp.hole):
            return edit
        return WarpedEdit(edit, self.movement.in_hole if site.cross else IDENTITY, warp, site.cross, dropped)

    @property
    def cache_key(self) -> Hashable:
        """Equal for step edits that have the same effect."""
        region = self.region
        max_queries = self.self_max_queries if self.self_alpha or region else 0
        movement = None if self.movement is None else self.movement.cache_key
        sites = self.sites if self.self_alpha or self.cross.changes or region or movement else ALL_SITES
        masks = None if region is None else tuple(cache_key(mask) for mask in region.masks.values())
        outside = None if region is None else cache_key(region.outside.R)
        cross = cache_key(self.cross.R), cache_key(self.cross.S)
        return *cross, float(self.self_alpha), max_queries, sites, outside, masks, movement


def injection(alpha: float) -> AttentionEdit:
    """(α I, (1 − α) I): the source's self-attention, to the share α."""
    return {0.0: IDENTITY, 1.0: INJECT}.get(alpha) or AttentionEdit(alpha, 1 - alpha)


@dataclass(frozen=True)
class EditPlan:
    """One target's edit over a whole run.

    word_edit: (R, S) before the schedule. cross_alpha: α of the cross-attention, steps × words. self_alpha: α of the
    self-attention, steps, at sites of at most `self_max_queries` queries. movement: with `in_hole` before the schedule.
    """

    word_edit: AttentionEdit
    cross_alpha: Tensor
    self_alpha: Tensor
    self_max_queries: int
    sites: SiteFilter = ALL_SITES
    region: Region | None = None
    movement: Movement | None = None

    @property
    def shown_objects(self) -> tuple[int, ...]:
        """The positions of the target's tokens that stand for the objects that are moved."""
        return () if self.movement is None else self.movement.dropped

    def at(self, step: int) -> StepEdit:
        """The edit of one step."""
        cross, movement = self.word_edit.scheduled(self.cross_alpha[step]), self.movement
        if movement is not None:
            movement = replace(movement, in_hole=movement.in_hole.scheduled(self.cross_alpha[step]))
        return StepEdit(cross, float(self.self_alpha[step]), self.self_max_queries, self.sites, self.region, movement)


def plan_edit(
    source: Prompt,
    target: Prompt,
    steps: int,
    options: EditOptions | None = None,
    *,
    skip_steps: int = 0,
    region_masks: Mapping[int, Tensor] | None = None,
    objects: Sequence[PlacedObject] = (),
    warps: Mapping[int, StrideWarp] | None = None,
) -> EditPlan:
    """The plan of the edit that leads from one prompt to another.

    An inner pair, swap or refine, is re-weighted and then scheduled, in this order.

    options: the defaults where None. skip_steps: the first steps of the run, which are not edited; the schedules count
    from there. region_masks: `options.region` as m of the queries by stride
    (`attention.masks.mask_per_stride`). objects: what is moved, and warps: its geometry by stride.
    Raises ValueError for prompts that cannot be swapped and for words that are not in the target.
    """
    options = options or EditOptions()
    kind = infer_kind(source, target) if options.kind == "auto" else options.kind
    if kind == "swap":
        words = swap_edit((published_swap_mapper if options.parity else swap_mapper)(source, target))
    else:
        words = refine_edit(*refine_alignment(source, target, parity=options.parity))
    region = None if region_masks is None else Region(region_masks, AttentionEdit(words.R, 0.0))
    dropped, in_hole = successors(words.R, source, objects), IDENTITY
    if options.reweight:
        c = equalizer(options.reweight, target, parity=options.parity)
        words, in_hole = words.reweighted(c), in_hole.reweighted(c)
    return EditPlan(
        words,
        cross_replace_alpha(options.cross_replace, target, steps, skip_steps=skip_steps, parity=options.parity),
        step_weights("self_replace", options.self_replace, steps, steps, skip_steps),
        options.self_max_queries,
        options.sites or ALL_SITES,
        region,
        None if warps is None else Movement(warps, dropped, in_hole),
    )


def successors(R: Matrix, source: Prompt, objects: Sequence[PlacedObject]) -> tuple[int, ...]:
    """The positions of the target's tokens to which the source's words for objects lead by R, i j."""
    rows = sorted({i for placed in objects for i in source.token_indices(placed.edit.word)})
    return tuple(dense(R, torch.zeros(len(source.ids)))[rows].sum(0).nonzero().flatten().tolist())
