"""The options of an edit, with their defaults and their validation. Nothing else in the project repeats them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypedDict

from minip2p.attention.contract import Attend, SiteFilter
from minip2p.attention.store import check_attend
from minip2p.io.images import read_mask
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.schedules import StepShare, check_weights, parse_step_share
from minip2p.p2p.warp import Move, ObjectEdit
from minip2p.sampling.settings import RunSettings
from minip2p.validation import check_max_queries

EXAMPLES = MappingProxyType({"move": "(32, 0)", "resize": "1.5", "duplicate": "(32, 0)"})  # for messages


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
    move: Mapping[Any, Any] | None
    resize: Mapping[Any, Any] | None
    duplicate: Mapping[Any, Any] | None
    remove: Any
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
    that are edited. region: a mask H W; outside of it the attention stays the source's at all steps. move, resize,
    duplicate, remove: what happens to objects, by words of the source (see `read_objects`). explicit: form the
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
    move: Mapping[Any, Any] | None = None
    resize: Mapping[Any, Any] | None = None
    duplicate: Mapping[Any, Any] | None = None
    remove: Any = None
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
        read_objects(self.move, self.resize, self.duplicate, self.remove)

    @property
    def objects(self) -> tuple[ObjectEdit, ...]:
        """The objects that are moved, resized, duplicated or removed; the last is in front."""
        return read_objects(self.move, self.resize, self.duplicate, self.remove)


def read_objects(move: Any, resize: Any, duplicate: Any, remove: Any) -> tuple[ObjectEdit, ...]:
    """What happens to objects of the source, each named by a word of the source as `Prompt.token_indices` takes it.

    move: word -> (x, y), a shift in picture pixels to the right and down, or a `Move`. resize: word -> a factor of its
    size, or a `Move`; a word that is moved or duplicated as well is resized in its new place. duplicate: as move; the
    object stays and appears a second time. remove: a word, a list of words, or word -> a `Move`, whose mask counts.
    The first object is at the back: those of move, those only of resize and those of duplicate, each in the order in
    which they are written. Raises ValueError.
    """
    for name, value in (("move", move), ("resize", resize), ("duplicate", duplicate)):
        if not isinstance(value, Mapping | None):
            raise ValueError(f"{name} takes an object by its word, as {{'cat': {EXAMPLES[name]}}}, not {value!r}")
    moved = {word: read_move(by) for word, by in (move or {}).items()}
    doubled = {word: read_move(by) for word, by in (duplicate or {}).items()}
    if remove is None or isinstance(remove, Mapping):
        gone = dict(remove or {})
    else:
        names = remove if isinstance(remove, list) else [remove]
        if wrong := [word for word in names if not isinstance(word, Hashable)]:
            raise ValueError(f"remove takes a word as text, as (text, n), by index or by a range, not as {wrong[0]!r}")
        gone = {word: Move() for word in names}
    words = [*moved, *doubled, *gone]
    if twice := [
        word for n, word in enumerate(words) if word in words[:n] or (word in gone and word in (resize or {}))
    ]:
        raise ValueError(f"{twice[0]!r} is named twice among the objects that are moved, duplicated and removed")
    for word, value in (resize or {}).items():
        size = value if isinstance(value, Move) else Move(scale=value)
        place = next((places for places in (moved, doubled) if word in places), None)
        if place is None:
            moved[word] = size
        elif isinstance(value, Move) or place[word].scale != 1:
            raise ValueError(f"{word!r} is moved and resized: write Move(by=(x, y), scale=factor) once, or two numbers")
        else:
            place[word] = replace(place[word], scale=size.scale)
    for word, value in gone.items():
        if not isinstance(value, Move) or tuple(value.by) != (0, 0) or value.scale != 1:
            raise ValueError(f"{word!r} is removed, which takes nothing but a mask, as Move(mask=mask), not {value!r}")
    return (
        *(ObjectEdit(word, "move", value) for word, value in moved.items()),
        *(ObjectEdit(word, "duplicate", value) for word, value in doubled.items()),
        *(ObjectEdit(word, "remove", value) for word, value in gone.items()),
    )


def read_move(value: Any) -> Move:
    """A `Move` from (x, y) or a `Move`. Raises ValueError."""
    return value if isinstance(value, Move) else Move(by=value)


def check_setting_names(settings: Mapping[str, Any]) -> None:
    """Raises TypeError, with one line, for names that are not settings of a run, and names similar options."""
    names = [field.name for field in fields(RunSettings)]
    for name in settings:
        if name not in names:
            known = [*names, *(field.name for field in fields(EditOptions))]
            similar = [other for other in known if name in other.split("_")] or get_close_matches(name, known)
            if name in similar:
                raise TypeError(f"{name} is an option of an edit, not of a run")
            hint = f"; did you mean {' or '.join(similar)}?" if similar else f"; a run has {', '.join(names)}"
            raise TypeError(f"there is no option {name!r}{hint}")
