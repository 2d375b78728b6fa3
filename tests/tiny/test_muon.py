"""Muon: the orthogonal matrix nearest to the momentum, and the size and direction of a step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minip2p.tiny.muon import QUINTIC, Muon, multiplies_bfloat16, orthogonalize


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_orthogonalize_keeps_the_singular_vectors_and_evens_the_singular_values(m, n, seed, scale):
    """Singular values of at least a hundredth of the norm become 0.6 … 1.25, whatever the matrix's scale. The singular
    vectors stay: Uᵀ X V is diagonal."""
    matrix = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    transformed = U.mT @ orthogonalize(scale * matrix) @ V.mT
    diagonal = transformed.diagonal()
    torch.testing.assert_close(transformed, torch.diag(diagonal), rtol=0, atol=1e-6)
    large = diagonal[0.01 * S.norm() < S]
    assert large.min() > 0.6 and large.max() < 1.25


def test_orthogonalize_is_the_newton_schulz_iteration():
    """It applies x ← a x + b x³ + c x⁵ five times to each singular value of the normalized matrix."""
    x = torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)
    expected = x / x.norm()
    a, b, c = QUINTIC
    for _ in range(5):
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(orthogonalize(torch.diag(x)), torch.diag(expected))


def test_a_zero_gradient_has_no_direction():
    assert not orthogonalize(torch.zeros(3, 2)).any()


def test_a_batch_of_matrices_is_orthogonalized_each_by_itself():
    batch = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(batch), torch.stack([orthogonalize(matrix) for matrix in batch]))


def test_bfloat16_deviates_no_more_than_jordans_iteration_in_bfloat16():
    """A float32 matrix against the same in float64, and Jordan's iteration on X, all of it in bfloat16."""
    matrix = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    exact = orthogonalize(matrix.double())
    x, (a, b, c) = (matrix / matrix.norm()).bfloat16(), QUINTIC
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    errors = [float((result.double() - exact).norm() / exact.norm()) for result in (orthogonalize(matrix), x)]
    assert errors[0] < 1.1 * errors[1] < 0.1
    assert (errors[0] > 1e-3) == multiplies_bfloat16(matrix.device)


@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last])
def test_the_step_does_not_depend_on_the_memory_format(grad_format):
    torch.manual_seed(0)
    weight, gradient = torch.randn(6, 4, 3, 3, dtype=torch.float64), torch.randn(6, 4, 3, 3, dtype=torch.float64)
    plain = muon_steps([gradient], nn.Parameter(weight.clone()), lr=0.1)
    last = nn.Parameter(weight.clone(memory_format=torch.channels_last))
    torch.testing.assert_close(muon_steps([gradient.contiguous(memory_format=grad_format)], last, lr=0.1), plain)


def test_weights_of_one_shape_do_not_mix():
    torch.manual_seed(0)
    gradients = torch.randn(2, 6, 4)
    together = [nn.Parameter(torch.zeros(6, 4)) for _ in range(2)]
    for p, gradient in zip(together, gradients, strict=True):
        p.grad = gradient
    Muon(together).step()
    for p, gradient in zip(together, gradients, strict=True):
        assert torch.equal(p, muon_steps([gradient], nn.Parameter(torch.zeros(6, 4))))


def muon_steps(gradients, p, **options):
    """The parameter after a step of Muon with each of the gradients."""
    muon = Muon([p], **options)
    for gradient in gradients:
        p.grad = gradient
        muon.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 2, 3, 3)])
def test_the_first_step_of_muon_by_hand(shape):
    """p ← (1 − lr · decay) p − lr · 0.2 √max(m, n) · orthogonalize(gradient); a convolution's n is in · kh · kw."""
    torch.manual_seed(0)
    p, gradient = nn.Parameter(torch.randn(shape)), torch.randn(shape)
    m, n = shape[0], gradient[0].numel()
    update = orthogonalize(gradient.reshape(m, n)).reshape(shape)
    expected = p.detach() * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(m, n) ** 0.5 * update
    torch.testing.assert_close(muon_steps([gradient], p, lr=0.1, decay=0.5), expected)


def test_a_step_of_muon_is_as_large_as_a_step_of_adamw():
    """AdamW steps usually have a root mean square of 0.2 times the learning rate (Liu et al. 2025, section 2.2)."""
    torch.manual_seed(0)
    for shape in ((64, 64), (32, 128)):
        step = muon_steps([torch.randn(shape)], nn.Parameter(torch.zeros(shape)), lr=1e-3)
        assert float(step.square().mean().sqrt()) == pytest.approx(0.2e-3, rel=0.2)


def test_nesterovs_momentum_by_hand():
    """m ← μ m + (1 − μ) g; the step follows μ m + (1 − μ) g. A row is only normalized, so its direction shows this."""
    a, b = torch.eye(2, dtype=torch.float64).split(1)
    p = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    first = muon_steps([a], nn.Parameter(torch.zeros_like(p)), lr=1.0, momentum=0.5, decay=0.0)
    second = muon_steps([a, b], p, lr=1.0, momentum=0.5, decay=0.0) - first
    ahead = 0.5 * (0.5 * 0.5 * a + 0.5 * b) + 0.5 * b  # μ m₂ + (1 − μ) g₂, m₁ = a / 2
    torch.testing.assert_close(second / second.norm(), -ahead / ahead.norm())


def test_a_parameter_without_a_gradient_does_not_change():
    p = nn.Parameter(torch.ones(2, 2))
    Muon([p]).step()
    assert torch.equal(p, torch.ones(2, 2))
