"""Prompt-to-Prompt as algebra: every edit is a pair of word-space matrices, Â = A_s R + A_e S.

A_s and A_e are the source's and the target's attention maps at one site and step (queries × words). The two executions
of a pair are equal within rounding: in map space, the paper's own (Hertz et al. 2022, algorithm 1), and in value space,
Â v = A_s (R v) + A_e (S v), where no map is ever formed.

Axes: b batch, h heads, i queries, j words (or pixels), d width of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import QK, Attend, Site, fused

Matrix = Tensor | float  # words × words; the numbers 0 and 1 stand for the zero and the identity matrix


def is_zero(matrix: Matrix) -> bool:
    return not isinstance(matrix, Tensor) and matrix == 0


def dense(matrix: Matrix, like: Tensor) -> Tensor:
    """The matrix itself, words × words, for a vector of so many words."""
    return matrix if isinstance(matrix, Tensor) else matrix * torch.eye(len(like)).to(like)


def simplify(matrix: Tensor) -> Matrix:
    """0 or 1 where the matrix is zero or the identity: what need not be multiplied, is not. But a gradient needs it."""
    if matrix.requires_grad:
        return matrix
    if not matrix.any():
        return 0.0
    identity = torch.eye(len(matrix)).to(matrix)
    return 1.0 if matrix.shape == identity.shape and torch.equal(matrix, identity) else matrix


def cache_key(matrix: Matrix) -> Any:
    """Equal for matrices of the same numbers; to nothing at all for one with a gradient."""
    if not isinstance(matrix, Tensor):
        return matrix
    return object() if matrix.requires_grad else (tuple(matrix.shape), matrix.cpu().numpy().tobytes())


def matmul_right(a: Tensor, b: Matrix) -> Tensor:
    """a b, for a matrix b that may be 0 or 1."""
    return a @ b.to(a) if isinstance(b, Tensor) else a * b


def matmul_left(a: Matrix, b: Tensor) -> Tensor:
    """a b, for a matrix a that may be 0 or 1."""
    return a.to(b) @ b if isinstance(a, Tensor) else a * b


@dataclass(frozen=True, eq=False)
class AttentionEdit:
    """Â = A_s R + A_e S: what each target word (column) takes from the source's words, and from its own map."""

    R: Matrix
    S: Matrix

    @property
    def changes(self) -> bool:
        """Whether Â can differ from A_e."""
        return not (is_zero(self.R) and not isinstance(self.S, Tensor) and self.S == 1)

    @property
    def reads(self) -> bool:
        """Whether A_s is needed."""
        return not is_zero(self.R)

    def reweighted(self, c: Tensor) -> "AttentionEdit":
        """(R diag c, S diag c): word j's attention times c_j, not renormalised (Hertz et al. 2022, section 3.2)."""
        return AttentionEdit(dense(self.R, c) * c, dense(self.S, c) * c)

    def scheduled(self, alpha: Tensor) -> "AttentionEdit":
        """(R diag α, S diag α + diag(1 − α)): word j is edited as far as α_j says, and keeps its own map else."""
        return AttentionEdit(
            simplify(dense(self.R, alpha) * alpha), simplify(dense(self.S, alpha) * alpha + torch.diag(1 - alpha))
        )

    def in_map_space(self, source: Tensor, target: Tensor) -> Tensor:
        """Â in map space: A_s, A_e b h i j -> b h i j."""
        return matmul_right(source, self.R) + matmul_right(target, self.S)

    def in_value_space(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(R v, S v): what the source's and the target's attention are applied to; v b h j d."""
        return matmul_left(self.R, v), matmul_left(self.S, v)

    def attend(self, source: QK | None, target: QK, v: Tensor, site: Site, attend: Attend = fused) -> Tensor:
        """Â v = A_s (R v) + A_e (S v) in value space, both maps by `attend`; a term whose matrix is 0 is not computed.

        source may be None only where R is 0.
        """
        from_source, from_target = self.in_value_space(v)
        if is_zero(self.R):
            return attend(*target, from_target, site)
        assert source is not None
        if is_zero(self.S):
            return attend(*source, from_source, site)
        return attend(*source, from_source, site) + attend(*target, from_target, site)


IDENTITY = AttentionEdit(0.0, 1.0)  # the target's own map


INJECT = AttentionEdit(1.0, 0.0)  # the source's map as it is; at self-attention sites: injection


@dataclass(frozen=True, eq=False)
class MaskedEdit:
    """Â = m ⊙ (A_s R + A_e S) + (1 − m) ⊙ A_s R': an edit where m is 1, the source's attention where it is 0.

    m: i 1, over the queries. kept: (R', 0), which brings the source's words to the target's places.
    """

    edit: AttentionEdit
    outside: AttentionEdit
    mask: Tensor
    changes = reads = True  # as of a `WordEdit`

    def in_map_space(self, source: Tensor, target: Tensor) -> Tensor:
        return self.combine(self.edit.in_map_space(source, target), self.outside.in_map_space(source, target))

    def attend(self, source: QK | None, target: QK, v: Tensor, site: Site, attend: Attend = fused) -> Tensor:
        return self.combine(*(pair.attend(source, target, v, site, attend) for pair in (self.edit, self.outside)))

    def combine(self, inside: Tensor, outside: Tensor) -> Tensor:
        m = self.mask.to(inside)
        return m * inside + (1 - m) * outside


def swap_edit(M: Tensor) -> AttentionEdit:
    """Word swap (Hertz et al. 2022, section 3.2): (M, 0)."""
    return AttentionEdit(M, 0.0)


def refine_edit(P: Tensor, kept: Tensor) -> AttentionEdit:
    """Adding a new phrase: (P diag κ, diag(1 − κ)): words that both prompts have take the source's map."""
    return AttentionEdit(P * kept, torch.diag(1 - kept))
