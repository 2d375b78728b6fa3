"""The search that null-text inversion makes at each step (Mokady et al. 2022, algorithm 1).

Axes: c h w latents, n tokens, d width of their embedding.
"""

import warnings
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import fused
from minip2p.checkpoints.components import Components
from minip2p.errors import Notice
from minip2p.inversion.ddim import ddim_inversion, to_trajectory
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory, check_finite
from minip2p.sched import Step
from minip2p.validation import check_number, is_integer


@torch.inference_mode(False)  # within one, too: it needs gradients
def null_text(
    parts: Components,
    start: RunSettings,
    progress: Progress = iter,
    *,
    num_inner_steps: int = 10,
    learning_rate: float = 0.01,
    early_stop_epsilon: float = 1e-5,
    early_stop_epsilon_step: float = 2e-5,
    gradient_checkpointing: bool = False,
) -> Trajectory:
    """Null-text inversion (Mokady et al. 2022, algorithm 1): for each step the unconditional embedding ∅_i for which
    the guided step from z̄ meets the pivot, by a fresh Adam that begins with the step before's:

        min over ∅_i of  ‖z*_{i+1} − z̄_{i+1}(z̄_i, ∅_i, words)‖²

    (of Stable Diffusion XL ∅_i is its tokens and its row of the prompt as a whole).

    At most `inner` updates a step, at a rate that falls to its half over the run; it stops where the mean squared error
    is below stop + stop_more · i. The prediction that met the bar is the one that the step is made by (the published
    code updates once more and predicts anew), so that each step costs one conditional row and at most inner + 1
    unconditional ones. Where a step ends worse than it began it is given the best embedding that it had, and a warning
    names it; the published code goes on from its last. checkpointing: the UNet makes activations again for the gradient
    instead of keeping them (Chen et al. 2016): less memory, a third more time, the same numbers.
    """
    if not is_integer(num_inner_steps) or num_inner_steps < 0:
        raise ValueError(f"inner must be a whole number from 0 on, not {num_inner_steps!r}")
    for name, number in (("rate", learning_rate), ("stop", early_stop_epsilon), ("stop_more", early_stop_epsilon_step)):
        check_number(name, number)
    start = replace(start, noise=start.noise.clone())
    ideal, words = ddim_inversion(parts, start, progress), parts.text(start.prompt)
    empty, x, made, kept, astray = (
        parts.text.encode_negative(start.negative_prompt).float(),
        ideal[:1],
        [ideal[:1]],
        [],
        [],
    )
    for i, step in enumerate(progress(parts.scheduler.steps(start.steps))):
        eps_c = parts.guided_noise(x, step.t, words, words, 1.0, fused)
        fit = NullTextStep(parts, x, step, eps_c, ideal[i + 1 : i + 2], start.guidance_scale, gradient_checkpointing)
        empty, x, worse = fit(
            empty,
            num_inner_steps,
            learning_rate * (1 - i / (2 * start.steps)),
            early_stop_epsilon + early_stop_epsilon_step * i,
        )
        astray += [i + 1] if worse else []
        made.append(check_finite(parts, x, i))
        kept.append(empty)
    if astray:
        warnings.warn(
            f"null-text inversion went astray at step {', '.join(map(str, astray))}; "
            "less guidance or a smaller rate may help",
            Notice,
            stacklevel=3,
        )
    return to_trajectory(parts, replace(start, conditioning=Conditioning(torch.cat(kept).cpu())), torch.cat(made))


LOSS_SCALE = 2.0**14  # the loss and Adam's ε times this: the same steps, but gradients do not vanish in 16 bits


@dataclass(frozen=True, eq=False)
class NullTextStep:
    """One step of null-text inversion: from x, by ε_c, towards the pivot."""

    components: Components
    x: Tensor
    step: Step
    eps_c: Tensor
    pivot: Tensor
    guidance: float
    gradient_checkpointing: bool = False  # activations are made again on the way back instead of being kept

    def guided_step(self, empty: Tensor) -> Tensor:
        """Where the guided step leads with an unconditional embedding, 1 n d -> 1 c h w."""
        x, context = self.x.to(self.components.dtype), empty.to(self.components.dtype)
        eps_u = self.components.unet_noise(x, self.step.t, context, fused, self.gradient_checkpointing)
        return self.components.scheduler.step(self.x, eps_u + self.guidance * (self.eps_c - eps_u), self.step)

    def __call__(self, empty: Tensor, inner: int, rate: float, stop: float) -> tuple[Tensor, Tensor, bool]:
        """The embedding that is found, where it leads, and whether the search ended worse than it began."""
        empty = empty.detach().clone().requires_grad_()
        adam, losses, seen = torch.optim.Adam([empty], lr=rate, eps=1e-8 * LOSS_SCALE), [], []
        for update in range(inner + 1):
            with torch.set_grad_enabled(update < inner):
                x = self.guided_step(empty)
                loss = F.mse_loss(x, self.pivot)
            losses.append(float(loss.detach()))
            seen.append((empty.detach().clone(), x.detach()))
            if losses[-1] < stop or update == inner:
                break
            adam.zero_grad()
            (loss * LOSS_SCALE).backward()
            adam.step()
        worse = not losses[-1] <= losses[0]  # NaN too
        best = min(range(len(losses)), key=losses.__getitem__) if worse else -1
        return *seen[best], worse
