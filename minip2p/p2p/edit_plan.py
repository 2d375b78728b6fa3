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
    outside: AttentionEdit


@dataclass(frozen=True)
class StepEdit:
    """What one target takes from the source at one step: its cross-attention by words, its self-attention by α."""

    cross: AttentionEdit
    self_alpha: float
    self_max_queries: int
    sites: SiteFilter = ALL_SITES
    region: Region | None = None

    def at_site(self, site: Site, queries: int) -> AttentionEdit | MaskedEdit:
        """The pair that holds at a site with so many queries."""
        if not self.sites.includes(site) or (not site.cross and queries > self.self_max_queries):
            return IDENTITY
        alpha = float(self.self_alpha)
        edit = self.cross if site.cross else {0.0: IDENTITY, 1.0: INJECT}.get(alpha, AttentionEdit(alpha, 1 - alpha))
        if self.region is None:
            return edit
        return MaskedEdit(edit, self.region.outside if site.cross else INJECT, self.region.masks[site.stride][:, None])

    @property
    def cache_key(self) -> Any:
        """Equal for rules that do the same."""
        pixels = self.self_max_queries if self.self_alpha or self.region else 0
        where = self.sites if self.self_alpha or self.cross.changes or self.region else ALL_SITES
        masks = None if self.region is None else [cache_key(m) for m in self.region.masks.values()]
        kept = None if self.region is None else cache_key(self.region.outside.R)
        return (
            cache_key(self.cross.R),
            cache_key(self.cross.S),
            float(self.self_alpha),
            pixels,
            where,
            kept,
            str(masks),
        )


@dataclass(frozen=True)
class EditPlan:
    """One target's edit over a whole run. words: (R, S) before the schedule. alpha: α, steps × words. self_alpha: α of
    the self-attention, steps, at sites of at most `self_pixels` queries."""

    word_edit: AttentionEdit
    cross_alpha: Tensor
    self_alpha: Tensor
    self_max_queries: int
    sites: SiteFilter = ALL_SITES
    region: Region | None = None

    def at(self, step: int) -> StepEdit:
        return StepEdit(
            self.word_edit.scheduled(self.cross_alpha[step]),
            float(self.self_alpha[step]),
            self.self_max_queries,
            self.sites,
            self.region,
        )


def plan_edit(
    source: Prompt,
    target: Prompt,
    steps: int,
    *,
    cross_replace: Any = 0.8,
    self_replace: Any = 0.4,
    self_max_queries: int = 32 * 32,
    kind: str = "auto",
    reweight: Mapping[Any, float] | None = None,
    sites: SiteFilter = ALL_SITES,
    region: Mapping[int, Tensor] | None = None,
    parity: bool = False,
) -> EditPlan:
    """The edit that leads from one prompt to another.

    kind: "swap", "refine" or "auto", which chooses by `kind_of`. cross: τ of the cross-attention, as `schedule` takes
    it; self_: of the self-attention, as `course` does. reweight: word of the target -> weight c. where: the sites and
    heads that it reaches. within: m of the queries that it reaches, by stride; the others keep the source's map at all
    steps. parity: the published code's mappers, defects included. Raises ValueError for prompts that cannot be swapped
    and for words that are not there.
    """
    check_max_queries(self_max_queries)
    if kind not in ("auto", "swap", "refine"):
        raise ValueError(f"kind must be auto, swap or refine, not {kind!r}")
    if (infer_kind(source, target) if kind == "auto" else kind) == "swap":
        words = swap_edit(swap_mapper(source, target, parity=parity))
    else:
        words = refine_edit(*refine_alignment(source, target, parity=parity))
    inside = None if region is None else Region(region, AttentionEdit(words.R, 0.0))
    if reweight:
        words = words.reweighted(equalizer(reweight, target, parity=parity))
    alpha = cross_replace_alpha(cross_replace, target, steps, parity=parity)
    return EditPlan(words, alpha, step_weights("self", self_replace, steps, steps), self_max_queries, sites, inside)
