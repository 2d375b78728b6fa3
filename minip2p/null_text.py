"""The search that null-text inversion makes at each step (Mokady et al. 2022, algorithm 1).

Axes: c h w latents, n tokens, d width of their embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention import fused
from minip2p.parts import Parts
from minip2p.sched import Step

LOUD = 2.0**14  # the loss and Adam's ε times this: the same steps, but gradients do not vanish in 16 bits


@dataclass(frozen=True, eq=False)
class NullText:
    """One step of null-text inversion: from x, by ε_c, towards the pivot."""

    parts: Parts
    x: Tensor
    step: Step
    eps_c: Tensor
    pivot: Tensor
    guidance: float
    again: bool = False  # activations are made again on the way back instead of being kept

    def led(self, empty: Tensor) -> Tensor:
        """Where the guided step leads with an unconditional embedding, 1 n d -> 1 c h w."""
        x, context = self.x.to(self.parts.dtype), empty.to(self.parts.dtype)
        eps_u = self.parts.counted(x, self.step.t, context, fused, self.again)
        return self.parts.sched.step(self.x, eps_u + self.guidance * (self.eps_c - eps_u), self.step)

    def __call__(self, empty: Tensor, inner: int, rate: float, stop: float) -> tuple[Tensor, Tensor, bool]:
        """The embedding that is found, where it leads, and whether the search ended worse than it began."""
        empty = empty.detach().clone().requires_grad_()
        adam, losses, seen = torch.optim.Adam([empty], lr=rate, eps=1e-8 * LOUD), [], []
        for update in range(inner + 1):
            with torch.set_grad_enabled(update < inner):
                x = self.led(empty)
                loss = F.mse_loss(x, self.pivot)
            losses.append(float(loss.detach()))
            seen.append((empty.detach().clone(), x.detach()))
            if losses[-1] < stop or update == inner:
                break
            adam.zero_grad()
            (loss * LOUD).backward()
            adam.step()
        worse = not losses[-1] <= losses[0]  # NaN too
        best = min(range(len(losses)), key=losses.__getitem__) if worse else -1
        return *seen[best], worse
