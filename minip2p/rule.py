"""What an edit does, where and when: the pair (R, S) that holds for a target at each step and site.

Axes: i queries, j words.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from minip2p.align import kind_of, refine_alignment, swap_mapper
from minip2p.attention import Site
from minip2p.config import is_finite, is_whole
from minip2p.edit import KEEP, NONE, Inside, WordEdit, content, refine, swap
from minip2p.words import Prompt, tokens_of

Bounds = float | tuple[float, float] | tuple[float, float, float]


def schedule(cross: Bounds | Mapping[Hashable, Bounds], prompt: Prompt, steps: int, *, parity: bool = False) -> Tensor:
    """α (steps, j) float32: 1 at the steps at which a target token takes the source's attention, else 0.

    cross: the steps, as shares of the run, see `course`; or these by word of the *target* prompt (anything that
    `Prompt.find` takes), with "default_" for all other tokens (1.0 if absent).
    A share f is row int(f · (steps + 1)), as in the published code: at 50 steps .8 → 40, .4 → 20, 1.0 → all.
    Raises ValueError for a word that is not there (parity: it is ignored) or shares that are not 0 ≤ start ≤ end ≤ 1.
    """
    given = cross if isinstance(cross, Mapping) else {"default_": cross}
    by_word: dict[Any, Bounds] = {"default_": 1.0, **given}
    alpha = torch.zeros(steps, len(prompt.ids))
    for word, share in by_word.items():  # "default_" first, wherever it was given
        tokens = list(range(len(prompt.ids)) if word == "default_" else tokens_of(prompt, word, parity))
        alpha[:, tokens] = course("cross", share, steps, steps + 1)[:, None]
    return alpha


def course(which: str, share: Bounds, steps: int, rows: int) -> Tensor:
    """α of each step: 1 on [start, end), of (start, end) or end alone; of three, then falling evenly to 0 at the third.
    A share f of the run is step int(f · rows)."""
    start, end, out = (int(bound * rows) for bound in _bounds(which, share))
    step = torch.arange(steps)
    return torch.where(step < end, 1.0, ((out - step) / (out - end + 1)).clamp(min=0)) * (step >= start)


def span(which: str, share: Bounds, rows: int) -> tuple[int, int]:
    """The steps [start, stop) at which α of a `course` is not 0."""
    start, _, out = _bounds(which, share)
    return int(start * rows), int(out * rows)


def equalizer(weights: Mapping[Hashable, float], prompt: Prompt, *, parity: bool = False) -> Tensor:
    """c (j) float32: the weight of each token's attention, 1 where none is given. ValueError as in `schedule`."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights are given by word, as {{'fog': 2.0}}, not {weights!r}")
    c = torch.ones(len(prompt.ids))
    for word, weight in weights.items():
        if not is_finite(weight):
            raise ValueError(f"the weight of {word!r} is {weight}, which is not a finite number")
        c[list(tokens_of(prompt, word, parity))] = float(weight)
    return c


def _bounds(which: str, share: Bounds) -> tuple[float, float, float]:
    """(start, end, out) of these, of a (start, end) or of an end alone. Raises ValueError for what is none of them."""
    bounds: tuple[float, ...] = tuple(share) if isinstance(share, tuple | list) else (0.0, share)
    rising = len(bounds) in (2, 3) and all(isinstance(one, Real) for one in bounds) and sorted(bounds) == list(bounds)
    if not rising or not 0 <= bounds[0] <= bounds[-1] <= 1:
        raise ValueError(f"the steps of {which} are shares 0 <= start <= end <= 1 of a run, not {share!r}")
    return bounds[0], bounds[1], bounds[-1]


@dataclass(frozen=True)
class Where:
    """Which attention an edit reaches, for ablations: the sites of these places, strides and indices (see `Site`), and
    of each these heads; all where None."""

    places: tuple[str, ...] | None = None
    strides: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def has(self, site: Site) -> bool:
        asked = (self.places, site.place), (self.strides, site.stride), (self.indices, site.index)
        return all(among is None or one in among for among, one in asked)

    def check(self, heads: Mapping[Site, int]) -> None:
        """Raises ValueError for what a model with these sites, of so many heads, does not have."""
        if not isinstance(self, Where):
            raise ValueError(f"where is a Where, not {self!r}")
        most = max(heads.values())
        for name, given, have in (
            ("places", self.places, {site.place for site in heads}),
            ("strides", self.strides, {site.stride for site in heads}),
            ("indices", self.indices, {site.index for site in heads}),
            ("heads", self.heads, set(range(most))),
        ):
            if given is not None and (not isinstance(given, tuple) or not given or not have.issuperset(given)):
                raise ValueError(f"{name} must be some of {sorted(have)}, as a tuple, not {given!r}")


EVERYWHERE = Where()


@dataclass(frozen=True, eq=False)
class Within:
    """Where an edit is to stay: m of the queries by stride, i each, and (R', 0) for the words outside."""

    masks: Mapping[int, Tensor]
    kept: WordEdit


@dataclass(frozen=True)
class Rule:
    """What one target takes from the source at one step: its cross-attention by words, its self-attention by α."""

    cross: WordEdit
    inject_self: float
    self_pixels: int
    where: Where = EVERYWHERE
    within: Within | None = None

    def of(self, site: Site, queries: int) -> WordEdit | Inside:
        """The pair that holds at a site with so many queries."""
        if not self.where.has(site) or (not site.cross and queries > self.self_pixels):
            return NONE
        alpha = float(self.inject_self)
        edit = self.cross if site.cross else {0.0: NONE, 1.0: KEEP}.get(alpha, WordEdit(alpha, 1 - alpha))
        if self.within is None:
            return edit
        return Inside(edit, self.within.kept if site.cross else KEEP, self.within.masks[site.stride][:, None])

    @property
    def key(self) -> Any:
        """Equal for rules that do the same."""
        pixels = self.self_pixels if self.inject_self or self.within else 0
        where = self.where if self.inject_self or self.cross.changes or self.within else EVERYWHERE
        masks = None if self.within is None else [content(m) for m in self.within.masks.values()]
        kept = None if self.within is None else content(self.within.kept.R)
        return content(self.cross.R), content(self.cross.S), float(self.inject_self), pixels, where, kept, str(masks)


@dataclass(frozen=True)
class Edit:
    """One target's edit over a whole run. words: (R, S) before the schedule. alpha: α, steps × words. self_alpha: α of
    the self-attention, steps, at sites of at most `self_pixels` queries."""

    words: WordEdit
    alpha: Tensor
    self_alpha: Tensor
    self_pixels: int
    where: Where = EVERYWHERE
    within: Within | None = None

    def at(self, step: int) -> Rule:
        return Rule(self.words.scheduled(self.alpha[step]), float(self.self_alpha[step]), self.self_pixels, self.where,
                    self.within)  # fmt: skip


def check_pixels(self_pixels: Any) -> None:
    """Raises ValueError."""
    if not is_whole(self_pixels) or not 0 <= self_pixels < 2**63:
        raise ValueError(f"self_pixels is a whole number from 0 on, not {self_pixels!r}")


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
    where: Where = EVERYWHERE,
    within: Mapping[int, Tensor] | None = None,
    parity: bool = False,
) -> Edit:
    """The edit that leads from one prompt to another.

    kind: "swap", "refine" or "auto", which chooses by `kind_of`. cross: τ of the cross-attention, as `schedule` takes
    it; self_: of the self-attention, as `course` does. reweight: word of the target -> weight c. where: the sites and
    heads that it reaches. within: m of the queries that it reaches, by stride; the others keep the source's map at all
    steps. parity: the published code's mappers, defects included. Raises ValueError for prompts that cannot be swapped
    and for words that are not there.
    """
    check_pixels(self_pixels)
    if kind not in ("auto", "swap", "refine"):
        raise ValueError(f"kind must be auto, swap or refine, not {kind!r}")
    if (kind_of(source, target) if kind == "auto" else kind) == "swap":
        words = swap(swap_mapper(source, target, parity=parity))
    else:
        words = refine(*refine_alignment(source, target, parity=parity))
    inside = None if within is None else Within(within, WordEdit(words.R, 0.0))
    if reweight:
        words = words.reweighted(equalizer(reweight, target, parity=parity))
    alpha = schedule(cross, target, steps, parity=parity)
    return Edit(words, alpha, course("self", self_, steps, steps), self_pixels, where, inside)
