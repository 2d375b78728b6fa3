"""Muon: the orthogonal matrix nearest to the momentum, and the size of a step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minip2p.tiny.muon import QUINTIC, Muon, orthogonalize


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_orthogonalized_keeps_the_directions_and_evens_their_sizes(m, n, seed, size):
    """Singular values come to 0.6 … 1.25 where they were no less than a hundredth of the norm, whatever its size; the
    singular vectors stay: Uᵀ X V is diagonal."""
    matrix = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    moved = U.mT @ orthogonalize(size * matrix) @ V.mT
    diagonal = moved.diagonal()
    torch.testing.assert_close(moved, torch.diag(diagonal), rtol=0, atol=1e-6)
    kept = diagonal[0.01 * S.norm() < S]
    assert kept.min() > 0.6 and kept.max() < 1.25


def test_orthogonalized_by_newton_schulz():
    """x ← a x + b x³ + c x⁵, five times, is what happens to each singular value of the normed matrix."""
    x = torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)
    expected = x / x.norm()
    a, b, c = QUINTIC
    for _ in range(5):
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(orthogonalize(torch.diag(x)), torch.diag(expected))


def test_no_gradient_no_direction():
    assert not orthogonalize(torch.zeros(3, 2)).any()


def stepped(gradients, p, **options) -> torch.Tensor:
    muon = Muon([p], **options)
    for gradient in gradients:
        p.grad = gradient
        muon.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 2, 3, 3)])
def test_the_first_step_of_muon_by_hand(shape):
    """p ← (1 − lr · decay) p − lr · 0.2 √max(m, n) · orthogonalized(gradient); a convolution's n is in · kh · kw."""
    torch.manual_seed(0)
    p, gradient = nn.Parameter(torch.randn(shape)), torch.randn(shape)
    m, n = shape[0], gradient[0].numel()
    update = orthogonalize(gradient.reshape(m, n)).reshape(shape)
    expected = p.detach() * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(m, n) ** 0.5 * update
    torch.testing.assert_close(stepped([gradient], p, lr=0.1, decay=0.5), expected)


def test_a_step_of_muon_is_as_large_as_one_of_adamw():
    """0.2 is the usual root mean square of an AdamW step over its learning rate (Liu et al. 2025, section 2.2)."""
    torch.manual_seed(0)
    for shape in ((64, 64), (32, 128)):
        moved = stepped([torch.randn(shape)], nn.Parameter(torch.zeros(shape)), lr=1e-3)
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.2e-3, rel=0.2)


def test_nesterovs_momentum_by_hand():
    """m ← μ m + (1 − μ) g; the step follows μ m + (1 − μ) g. A row is only normed, so its direction tells."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p = nn.Parameter(torch.zeros(1, 2))
    first = stepped([a], nn.Parameter(torch.zeros(1, 2)), lr=1.0, momentum=0.5, decay=0.0)
    second = stepped([a, b], p, lr=1.0, momentum=0.5, decay=0.0) - first
    ahead = 0.5 * (0.5 * 0.5 * a + 0.5 * b) + 0.5 * b  # μ m₂ + (1 − μ) g₂, m₁ = a / 2
    torch.testing.assert_close(second / second.norm(), -ahead / ahead.norm())


def test_a_parameter_without_a_gradient_stays():
    p = nn.Parameter(torch.ones(2, 2))
    Muon([p]).step()
    assert torch.equal(p, torch.ones(2, 2))
