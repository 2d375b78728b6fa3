"""Muon: an optimizer that moves a weight matrix equally along all its directions (Jordan et al. 2024).

A gradient's few large singular values drown its many small ones. Muon steps along the orthogonal matrix nearest to the
momentum, in which all singular values are one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: steep at 0, near 1 on [0.7, 1.2]


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """U Vᵀ of each matrix U S Vᵀ, … m n, nearly: singular values of at least 0.002 of the norm become 0.68 … 1.2.

    It is the Newton–Schulz iteration X ← (a + b XXᵀ + c (XXᵀ)²) X. Polynomials in A = XXᵀ commute, so it runs on A,
    which is small, and is applied to X once: the same product for a third of the multiplications. Jordan iterates in
    bfloat16. On A that would lose the small singular values, which A has squared: here only the last step and the
    product with X are in bfloat16, for float32 matrices on a CPU that multiplies it, which deviates as little as his.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    a, b, c = QUINTIC
    gram = x @ x.mT
    product = None  # of the factors so far
    for step in range(steps):
        if step == steps - 1 and x.dtype == torch.float32 and multiplies_bfloat16(x.device):
            x, gram, product = x.bfloat16(), gram.bfloat16(), product if product is None else product.bfloat16()
        factor = c * (gram @ gram) + b * gram
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    x = (x if product is None else product @ x).to(matrices.dtype)
    return x.mT if tall else x


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device is a CPU with instructions that multiply bfloat16 matrices."""
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def columns_in_memory_order(tensor: Tensor, weight: nn.Parameter) -> Tensor:
    """A view of a tensor that is shaped as a weight, with the axes after the first in the weight's order of memory.

    Flattened, it is the matrix without a copy. The order of the columns does not matter: orthogonalizing permuted
    columns permutes the result.
    """
    is_channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return tensor.movedim(1, -1) if is_channels_last else tensor


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
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            grads, momenta = [p.grad for p in params], [self.state[p]["momentum"] for p in params]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            directions = torch._foreach_lerp(grads, momenta, group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["decay"])
            alike: dict[Any, list[int]] = {}
            matrices = [columns_in_memory_order(d, p).flatten(1) for d, p in zip(directions, params, strict=True)]
            for i, (p, matrix) in enumerate(zip(params, matrices, strict=True)):
                # Matrices of one shape go together on a GPU, which is slow to start many small products; a CPU is not.
                alike.setdefault(matrix.shape if p.is_cuda else i, []).append(i)
            for indices in alike.values():
                stacked = [matrices[i] for i in indices]
                # A CPU multiplies a matrix by itself faster than a batch of one.
                updates = [orthogonalize(stacked[0])] if len(stacked) == 1 else [*orthogonalize(torch.stack(stacked))]
                rows = [columns_in_memory_order(params[i], params[i]) for i in indices]
                updates = [update.view(row.shape) for update, row in zip(updates, rows, strict=True)]
                scale = 0.2 * max(stacked[0].shape) ** 0.5
                torch._foreach_add_(rows, updates, alpha=-group["lr"] * scale)
