"""The options of an edit, with their defaults and their validation. Nothing else in the project repeats them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from minip2p.attention.contract import Attend, SiteFilter
from minip2p.attention.store import check_attend
from minip2p.io.images import read_mask
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.schedules import StepShare, check_weights, parse_step_share
from minip2p.validation import check_max_queries


class EditOptionKeywords(TypedDict, total=False):
    """The fields of `EditOptions` as keywords, for type checkers."""

    cross_replace: StepShare | Mapping[Any, StepShare]
    self_replace: StepShare
    self_max_queries: int
    kind: str
    reweight: Mapping[Any, float] | None
    local_blend: LocalBlend | str | Sequence[Any] | None
    sites: SiteFilter | None
    region: Any
    explicit: bool
    parity: bool
    attend: Attend | None


@dataclass(frozen=True, eq=False, kw_only=True)
class EditOptions:
    """How a source is edited into a target. The names are those of the paper (Hertz et al. 2022) where it has them.

    cross_replace: τ_c, the steps at which target words take the source's cross-attention: a share of the run, a
    (start, end), a (start, end, out) that fades out, or a mapping from words of the target to these, whose "default_"
    is for all other words and 1.0 if absent. self_replace: τ_s, the same for the self-attention, without words.
    self_max_queries: self-attention is only injected at sites of at most so many queries. kind: "swap", "refine", or
    "auto" (see `alignment.infer_kind`). reweight: word of the target -> weight of its attention. local_blend: where the
    picture may change: a word, a (source word, target word) or a `LocalBlend`. sites: the attention sites and heads
    that are edited. region: a mask H W; outside of it the attention stays the source's at all steps. explicit: form the
    attention maps, as the paper does, instead of editing in value space. parity: use the mappers and words of the
    published code, defects included; a blend finds its words our way. attend: the targets' attention apart from the
    edit; None is the source's.
    Raises ValueError for values that are wrong whatever the prompts are.
    """

    cross_replace: StepShare | Mapping[Any, StepShare] = 0.8
    self_replace: StepShare = 0.4
    self_max_queries: int = 32 * 32
    kind: str = "auto"
    reweight: Mapping[Any, float] | None = None
    local_blend: Any = None
    sites: SiteFilter | None = None
    region: Any = None
    explicit: bool = False
    parity: bool = False
    attend: Attend | None = None

    def __post_init__(self) -> None:
        if self.attend is not None:
            check_attend(self.attend)
        check_max_queries(self.self_max_queries)
        if self.kind not in ("auto", "swap", "refine"):
            raise ValueError(f"kind must be auto, swap or refine, not {self.kind!r}")
        if self.sites is not None and not isinstance(self.sites, SiteFilter):
            raise ValueError(f"sites must be a SiteFilter, not {self.sites!r}")
        cross = self.cross_replace
        for share in cross.values() if isinstance(cross, Mapping) else [cross]:
            parse_step_share("cross_replace", share)
        parse_step_share("self_replace", self.self_replace)
        if self.reweight is not None:
            check_weights(self.reweight)
        object.__setattr__(self, "local_blend", LocalBlend.from_argument(self.local_blend))
        if self.region is not None:
            object.__setattr__(self, "region", read_mask(self.region))
