"""The algebra of edits: every edit is a pair of word-space matrices (R, S) with Â = A_s R + A_e S.

A_s and A_e are the attention maps of the source and of the edited target at one site and step (queries × words). A pair
can be executed in two ways, which are equal within rounding: in map space, as in the paper (Hertz et al. 2022,
algorithm 1), and in value space, Â v = A_s (R v) + A_e (S v), where no map is ever formed.

Axes: b batch, h heads, i queries, j words (or pixels), d width of a head.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from minip2p.attention.contract import QK, Attend, Site, fused
from minip2p.io.tensors import to_device

Matrix = Tensor | float  # words × words, or a number c for c times the identity


def is_zero(matrix: Matrix) -> bool:
    return not isinstance(matrix, Tensor) and matrix == 0


def dense(matrix: Matrix, like: Tensor) -> Tensor:
    """The matrix as a tensor, words × words. like: a vector with one entry a word."""
    return matrix if isinstance(matrix, Tensor) else matrix * torch.eye(len(like)).to(like)


def simplify(matrix: Tensor) -> Matrix:
    """0 for a zero matrix and 1 for the identity, which need no product; else, or if it has a gradient, the matrix."""
    if matrix.requires_grad:
        return matrix
    if not matrix.any():
        return 0.0
    identity = torch.eye(len(matrix)).to(matrix)
    return 1.0 if matrix.shape == identity.shape and torch.equal(matrix, identity) else matrix


def cache_key(matrix: Matrix) -> Hashable:
    """A key that is equal for matrices of the same numbers. A matrix with a gradient equals no other."""
    if not isinstance(matrix, Tensor):
        return matrix
    return object() if matrix.requires_grad else (tuple(matrix.shape), matrix.cpu().numpy().tobytes())


def matmul_right(a: Tensor, b: Matrix) -> Tensor:
    """a b, where b may be a number."""
    return a @ to_device(b, a.device, a.dtype) if isinstance(b, Tensor) else a * b


def matmul_left(a: Matrix, b: Tensor) -> Tensor:
    """a b, where a may be a number."""
    return to_device(a, b.device, b.dtype) @ b if isinstance(a, Tensor) else a * b


@dataclass(frozen=True, eq=False)
class AttentionEdit:
    """Â = A_s R + A_e S: what each target word (column) takes from the source's words and from its own map."""

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
        """(R diag c, S diag c): the attention of word j times c_j, not renormalised (Hertz et al. 2022, sec. 3.2)."""
        return AttentionEdit(dense(self.R, c) * c, dense(self.S, c) * c)

    def scheduled(self, alpha: Tensor) -> "AttentionEdit":
        """(R diag α, S diag α + diag(1 − α)): word j is edited to the share α_j and otherwise keeps its own map."""
        R = dense(self.R, alpha) * alpha
        S = dense(self.S, alpha) * alpha + torch.diag(1 - alpha)
        return AttentionEdit(simplify(R), simplify(S))

    def in_map_space(self, source: Tensor, target: Tensor) -> Tensor:
        """Â from A_s and A_e, b h i j each."""
        return matmul_right(source, self.R) + matmul_right(target, self.S)

    def in_value_space(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(R v, S v), the values of the source's and the target's attention; v b h j d."""
        return matmul_left(self.R, v), matmul_left(self.S, v)

    def attend(
        self,
        source: QK | None,
        target: QK,
        v: Tensor,
        site: Site,
        attend: Attend = fused,
        *,
        source_attend: Attend | None = None,
    ) -> Tensor:
        """Â v = A_s (R v) + A_e (S v), both attentions by `attend`. A term whose matrix is 0 is not computed.

        source may be None only where R is 0. source_attend: the source's attention, where it is another.
        """
        source_values, target_values = self.in_value_space(v)
        attend_source = source_attend or attend
        if is_zero(self.R):
            return attend(*target, target_values, site)
        assert source is not None
        if is_zero(self.S):
            return attend_source(*source, source_values, site)
        return attend_source(*source, source_values, site) + attend(*target, target_values, site)


IDENTITY = AttentionEdit(0.0, 1.0)  # the target's own map
INJECT = AttentionEdit(1.0, 0.0)  # the source's map; at self-attention sites: self-attention injection


@dataclass(frozen=True, eq=False)
class MaskedEdit:
    """Â = m ⊙ (A_s R + A_e S) + (1 − m) ⊙ A_s R': an edit inside of a region, the source's attention outside.

    mask: m, i 1, over the queries. outside: (R', 0), which brings the source's words to the places of the target's.
    """

    edit: AttentionEdit
    outside: AttentionEdit
    mask: Tensor

    @property
    def changes(self) -> bool:
        return True

    @property
    def reads(self) -> bool:
        return True

    def in_map_space(self, source: Tensor, target: Tensor) -> Tensor:
        """Â from A_s and A_e, b h i j each."""
        return self.combine(self.edit.in_map_space(source, target), self.outside.in_map_space(source, target))

    def attend(
        self,
        source: QK | None,
        target: QK,
        v: Tensor,
        site: Site,
        attend: Attend = fused,
        *,
        source_attend: Attend | None = None,
    ) -> Tensor:
        """Â v in value space, as `AttentionEdit.attend`."""
        inside, outside = (
            edit.attend(source, target, v, site, attend, source_attend=source_attend)
            for edit in (self.edit, self.outside)
        )
        return self.combine(inside, outside)

    def combine(self, inside: Tensor, outside: Tensor) -> Tensor:
        """m ⊙ inside + (1 − m) ⊙ outside."""
        m = to_device(self.mask, inside.device, inside.dtype)
        return m * inside + (1 - m) * outside


def swap_edit(M: Tensor) -> AttentionEdit:
    """Word swap (Hertz et al. 2022, section 3.2): (M, 0)."""
    return AttentionEdit(M, 0.0)


def refine_edit(P: Tensor, kappa: Tensor) -> AttentionEdit:
    """Adding a new phrase (Hertz et al. 2022, section 3.2): (P diag κ, diag(1 − κ)).

    Words that both prompts have (κ = 1) take the source's map; new words keep their own.
    """
    return AttentionEdit(P * kappa, torch.diag(1 - kappa))
