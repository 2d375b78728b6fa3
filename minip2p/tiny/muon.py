"""Muon: an optimizer that moves a weight matrix equally along all its directions (Jordan et al. 2024).

A gradient's few large singular values drown its many small ones. Muon steps along the orthogonal matrix nearest to the
momentum, in which all singular values are one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: steep at 0, near 1 on [0.7, 1.2]


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximately U Vᵀ for matrix = U S Vᵀ, m n: singular values of at least 0.002 of the norm become 0.68 … 1.2.

    It is the Newton–Schulz iteration X ← (a + b XXᵀ + c (XXᵀ)²) X. Polynomials in A = XXᵀ commute, so it runs on A,
    which is small, and is applied to X once: the same product for a third of the multiplications.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-12)
    a, b, c = QUINTIC
    gram = x @ x.mT
    identity = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    product = identity  # of the factors so far
    for step in range(steps):
        factor = torch.addmm(a * identity + b * gram, gram, gram, alpha=c)
        product = factor @ product if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for weights with two or more axes. A convolution is (out, in · kh · kw).

    A step is scaled by 0.2 √max(m, n). Its root mean square is then that of an AdamW step, so that both optimizers take
    the same learning rate (Liu et al. 2025, arXiv 2502.16982, eq. 4). decay: decoupled weight decay.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(momentum, group["momentum"]).flatten(1)
                update = orthogonalize(direction).view(p.shape)
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(direction.shape) ** 0.5)
