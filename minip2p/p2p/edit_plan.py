"""What an edit does, where and when: the pair (R, S) that holds for a target at each step and site.

Axes: i queries, j words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minip2p.attention.contract import ALL_SITES, Site, SiteFilter
from minip2p.p2p.algebra import IDENTITY, INJECT, AttentionEdit, MaskedEdit, cache_key, refine_edit, swap_edit
from minip2p.p2p.alignment import infer_kind, refine_alignment, swap_mapper
from minip2p.p2p.schedules import cross_replace_alpha, equalizer, step_weights
from minip2p.text.prompt import Prompt
from minip2p.validation import check_max_queries


@dataclass(frozen=True, eq=False)
class Region:
    """Where an edit is to stay: m of the queries by stride, i each, and (R', 0) for the words outside."""

    masks: Mapping[int, Tensor]
    kept: AttentionEdit


@dataclass(frozen=True)
class StepEdit:
    """What one target takes from the source at one step: its cross-attention by words, its self-attention by α."""

    cross: AttentionEdit
    inject_self: float
    self_pixels: int
    where: SiteFilter = ALL_SITES
    within: Region | None = None

    def of(self, site: Site, queries: int) -> AttentionEdit | MaskedEdit:
        """The pair that holds at a site with so many queries."""
        if not self.where.has(site) or (not site.cross and queries > self.self_pixels):
            return IDENTITY
        alpha = float(self.inject_self)
        edit = self.cross if site.cross else {0.0: IDENTITY, 1.0: INJECT}.get(alpha, AttentionEdit(alpha, 1 - alpha))
        if self.within is None:
            return edit
        return MaskedEdit(edit, self.within.kept if site.cross else INJECT, self.within.masks[site.stride][:, None])

    @property
    def key(self) -> Any:
        """Equal for rules that do the same."""
        pixels = self.self_pixels if self.inject_self or self.within else 0
        where = self.where if self.inject_self or self.cross.changes or self.within else ALL_SITES
        masks = None if self.within is None else [cache_key(m) for m in self.within.masks.values()]
        kept = None if self.within is None else cache_key(self.within.kept.R)
        return (
            cache_key(self.cross.R),
            cache_key(self.cross.S),
            float(self.inject_self),
            pixels,
            where,
            kept,
            str(masks),
        )


@dataclass(frozen=True)
class EditPlan:
    """One target's edit over a whole run. words: (R, S) before the schedule. alpha: α, steps × words. self_alpha: α of
    the self-attention, steps, at sites of at most `self_pixels` queries."""

    words: AttentionEdit
    alpha: Tensor
    self_alpha: Tensor
    self_pixels: int
    where: SiteFilter = ALL_SITES
    within: Region | None = None

    def at(self, step: int) -> StepEdit:
        return StepEdit(
            self.words.scheduled(self.alpha[step]),
            float(self.self_alpha[step]),
            self.self_pixels,
            self.where,
            self.within,
        )


def plan_edit(
    source: Prompt,
    target: Prompt,
    steps: int,
    *,
    cross: Any = 0.8,
    self_: Any = 0.4,
    self_pixels: int = 32 * 32,
    kind: str = "auto",
    reweight: Mapping[Any, float] | None = None,
    where: SiteFilter = ALL_SITES,
    within: Mapping[int, Tensor] | None = None,
    parity: bool = False,
) -> EditPlan:
    """The edit that leads from one prompt to another.

    kind: "swap", "refine" or "auto", which chooses by `kind_of`. cross: τ of the cross-attention, as `schedule` takes
    it; self_: of the self-attention, as `course` does. reweight: word of the target -> weight c. where: the sites and
    heads that it reaches. within: m of the queries that it reaches, by stride; the others keep the source's map at all
    steps. parity: the published code's mappers, defects included. Raises ValueError for prompts that cannot be swapped
    and for words that are not there.
    """
    check_max_queries(self_pixels)
    if kind not in ("auto", "swap", "refine"):
        raise ValueError(f"kind must be auto, swap or refine, not {kind!r}")
    if (infer_kind(source, target) if kind == "auto" else kind) == "swap":
        words = swap_edit(swap_mapper(source, target, parity=parity))
    else:
        words = refine_edit(*refine_alignment(source, target, parity=parity))
    inside = None if within is None else Region(within, AttentionEdit(words.R, 0.0))
    if reweight:
        words = words.reweighted(equalizer(reweight, target, parity=parity))
    alpha = cross_replace_alpha(cross, target, steps, parity=parity)
    return EditPlan(words, alpha, step_weights("self", self_, steps, steps), self_pixels, where, inside)
