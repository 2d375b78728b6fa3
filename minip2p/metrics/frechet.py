"""How far a set of pictures is from another, by the features of a network.

Axes: n pictures, c features.
"""

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance of the normal distributions that two sets of features, n c each, are fitted by:

        ‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½)

    (Dowson & Landau 1982; Heusel et al. 2017, section 2, with the features of an Inception network.) It is computed in
    float64; the covariances are those of a sample, divided by n − 1. Few pictures make it larger.
    Raises ValueError if a set has fewer than two pictures, or the numbers of features differ.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"the distance is of two sets of at least two pictures with equal features, not {shapes}")
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(features.mT)) for features in (a, b))
    # (C_a C_b)^½ has the same trace as (S C_b S)^½ with S = C_a^½, which is symmetric.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))
