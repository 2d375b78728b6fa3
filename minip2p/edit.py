"""Prompt-to-Prompt as algebra: every edit is a pair of word-space matrices, Â = A_s R + A_e S.

A_s and A_e are the source's and the target's attention maps at one site and step (queries × words). The two executions
of a pair are equal within rounding: in map space, the paper's own (Hertz et al. 2022, algorithm 1), and in value space,
Â v = A_s (R v) + A_e (S v), where no map is ever formed.

Axes: b batch, h heads, i queries, j words (or pixels), d width of a head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minip2p.align import kind_of, refine_alignment, swap_mapper
from minip2p.attention import Attend, Site, fused
from minip2p.config import is_whole
from minip2p.words import Prompt, equalizer, schedule, self_steps

Matrix = Tensor | float  # words × words; the numbers 0 and 1 stand for the zero and the identity matrix
QK = tuple[Tensor, Tensor]  # queries 1 h i d and keys 1 h j d of one picture: its map, before the softmax
Wanted = Callable[[Site, int], bool]  # whether a site, with so many queries, is to be read


def is_zero(matrix: Matrix) -> bool:
    return not isinstance(matrix, Tensor) and matrix == 0


def dense(matrix: Matrix, like: Tensor) -> Tensor:
    """The matrix itself, words × words, for a vector of so many words."""
    return matrix if isinstance(matrix, Tensor) else matrix * torch.eye(len(like)).to(like)


def simple(matrix: Tensor) -> Matrix:
    """0 or 1 where the matrix is zero or the identity: what need not be multiplied, is not. But a gradient needs it."""
    if matrix.requires_grad:
        return matrix
    if not matrix.any():
        return 0.0
    identity = torch.eye(len(matrix)).to(matrix)
    return 1.0 if matrix.shape == identity.shape and torch.equal(matrix, identity) else matrix


def content(matrix: Matrix) -> Any:
    """Equal for matrices of the same numbers; to nothing at all for one with a gradient."""
    if not isinstance(matrix, Tensor):
        return matrix
    return object() if matrix.requires_grad else (tuple(matrix.shape), matrix.cpu().numpy().tobytes())


def right(a: Tensor, b: Matrix) -> Tensor:
    """a b, for a matrix b that may be 0 or 1."""
    return a @ b.to(a) if isinstance(b, Tensor) else a * b


def left(a: Matrix, b: Tensor) -> Tensor:
    """a b, for a matrix a that may be 0 or 1."""
    return a.to(b) @ b if isinstance(a, Tensor) else a * b


@dataclass(frozen=True, eq=False)
class WordEdit:
    """Â = A_s R + A_e S: what each target word (column) takes from the source's words, and from its own map."""

    R: Matrix
    S: Matrix

    @property
    def changes(self) -> bool:
        """Whether Â can differ from A_e."""
        return not (is_zero(self.R) and not isinstance(self.S, Tensor) and self.S == 1)

    def reweighted(self, c: Tensor) -> "WordEdit":
        """(R diag c, S diag c): word j's attention times c_j, not renormalised (Hertz et al. 2022, section 3.2)."""
        return WordEdit(dense(self.R, c) * c, dense(self.S, c) * c)

    def scheduled(self, alpha: Tensor) -> "WordEdit":
        """(R diag α, S diag α + diag(1 − α)): word j is edited as far as α_j says, and keeps its own map else."""
        return WordEdit(simple(dense(self.R, alpha) * alpha),
                        simple(dense(self.S, alpha) * alpha + torch.diag(1 - alpha)))  # fmt: skip

    def on_maps(self, source: Tensor, target: Tensor) -> Tensor:
        """Â in map space: A_s, A_e b h i j -> b h i j."""
        return right(source, self.R) + right(target, self.S)

    def on_values(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(R v, S v): what the source's and the target's attention are applied to; v b h j d."""
        return left(self.R, v), left(self.S, v)

    def attend(self, source: QK | None, target: QK, v: Tensor, site: Site, attend: Attend = fused) -> Tensor:
        """Â v = A_s (R v) + A_e (S v) in value space, both maps by `attend`; a term whose matrix is 0 is not computed.

        source may be None only where R is 0.
        """
        from_source, from_target = self.on_values(v)
        if is_zero(self.R):
            return attend(*target, from_target, site)
        assert source is not None
        if is_zero(self.S):
            return attend(*source, from_source, site)
        return attend(*source, from_source, site) + attend(*target, from_target, site)


NONE = WordEdit(0.0, 1.0)  # the target's own map
KEEP = WordEdit(1.0, 0.0)  # the source's map as it is; at self-attention sites: injection


def swap(M: Tensor) -> WordEdit:
    """Word swap (Hertz et al. 2022, section 3.2): (M, 0)."""
    return WordEdit(M, 0.0)


def refine(P: Tensor, kept: Tensor) -> WordEdit:
    """Adding a new phrase: (P diag κ, diag(1 − κ)): words that both prompts have take the source's map."""
    return WordEdit(P * kept, torch.diag(1 - kept))


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


@dataclass(frozen=True)
class Rule:
    """What one target takes from the source at one step: its cross-attention by words, its self-attention or not."""

    cross: WordEdit
    inject_self: bool
    self_pixels: int
    where: Where = EVERYWHERE

    def of(self, site: Site, queries: int) -> WordEdit:
        """The pair that holds at a site with so many queries."""
        if not self.where.has(site):
            return NONE
        if site.cross:
            return self.cross
        return KEEP if self.inject_self and queries <= self.self_pixels else NONE

    @property
    def key(self) -> Any:
        """Equal for rules that do the same."""
        pixels = self.self_pixels if self.inject_self else 0
        where = self.where if self.inject_self or self.cross.changes else EVERYWHERE
        return content(self.cross.R), content(self.cross.S), pixels, where


@dataclass(frozen=True)
class Edit:
    """One target's edit over a whole run. words: (R, S) before the schedule. alpha: α, steps × words.

    Self-attention is injected at the steps [start, stop) of `self_steps`, at sites of at most `self_pixels` queries.
    """

    words: WordEdit
    alpha: Tensor
    self_steps: tuple[int, int]
    self_pixels: int
    where: Where = EVERYWHERE

    def at(self, step: int) -> Rule:
        start, stop = self.self_steps
        return Rule(self.words.scheduled(self.alpha[step]), start <= step < stop, self.self_pixels, self.where)


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
    parity: bool = False,
) -> Edit:
    """The edit that leads from one prompt to another.

    kind: "swap", "refine" or "auto", which chooses by `kind_of`. cross: τ of the cross-attention, as `schedule` takes
    it; self_: of the self-attention. reweight: word of the target -> weight c. where: the sites and heads that it
    reaches. parity: the published code's mappers, defects included. Raises ValueError for prompts that cannot be
    swapped and for words that are not there.
    """
    check_pixels(self_pixels)
    if kind not in ("auto", "swap", "refine"):
        raise ValueError(f"kind must be auto, swap or refine, not {kind!r}")
    if (kind_of(source, target) if kind == "auto" else kind) == "swap":
        words = swap(swap_mapper(source, target, parity=parity))
    else:
        words = refine(*refine_alignment(source, target, parity=parity))
    if reweight:
        words = words.reweighted(equalizer(reweight, target, parity=parity))
    alpha = schedule(cross, target, steps, parity=parity)
    return Edit(words, alpha, self_steps(self_, steps), self_pixels, where)
