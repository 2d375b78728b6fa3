"""The Fréchet distance, by hand and against the general formula."""

import pytest
import torch

from minip2p.metrics.frechet import frechet_distance


def test_one_feature_by_hand():
    """Means 1 and 5; variances 1 and 9 of the samples: (1 − 5)² + (1 − 3)² = 20."""
    a, b = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[2.0], [5.0], [8.0]])
    assert frechet_distance(a, b) == pytest.approx(20)
    assert frechet_distance(b, a) == pytest.approx(20) and frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_independent_features_add_up():
    """The corners of two rectangles: each feature by itself is a case of one feature."""
    square = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    a, b = square, square * torch.tensor([3.0, 2.0]) + torch.tensor([1.0, 0.0])
    variance = 4 / 3
    expected = 1 + variance * ((3 - 1) ** 2 + (2 - 1) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_it_is_the_formula_for_dependent_features():
    """tr (C_a C_b)^½ is the sum of the roots of the eigenvalues of C_a C_b, which is not symmetric."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(50, 4, generator=generator, dtype=torch.float64)
        @ torch.randn(4, 4, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    cov_a, cov_b = torch.cov(a.mT), torch.cov(b.mT)
    cross = torch.linalg.eigvals(cov_a @ cov_b).real.sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_a_rotation_and_a_shift_of_both_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(30, 3, generator=generator), 2 * torch.randn(20, 3, generator=generator) + 1
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    assert frechet_distance(a @ rotation + 5, b @ rotation + 5) == pytest.approx(frechet_distance(a, b), rel=1e-4)


@pytest.mark.parametrize("shapes", [((1, 2), (5, 2)), ((5, 2), (5, 3))])
def test_what_cannot_be_compared_is_an_error(shapes):
    with pytest.raises(ValueError, match="two sets of at least two pictures with equal features"):
        frechet_distance(*(torch.zeros(shape) for shape in shapes))
