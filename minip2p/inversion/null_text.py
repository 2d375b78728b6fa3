"""Null-text inversion (Mokady et al. 2022, algorithm 1).

Axes: t steps, c h w latents, n tokens, d width of a text embedding.
"""

import warnings
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.checkpoints.components import Components
from minip2p.errors import Notice
from minip2p.inversion.ddim import ddim_inversion
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.guidance import FiniteCheck, guided_noise, unet_noise
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.sched import Step
from minip2p.text.encoder import TextEmbedding
from minip2p.validation import check_number, is_integer

LOSS_SCALE = 2.0**14  # of the loss and of Adam's epsilon: the steps are the same, but 16-bit gradients do not vanish


@torch.inference_mode(False)  # it needs gradients even where the caller has switched them off
def null_text(
    components: Components,
    start: RunStart,
    progress: Progress = iter,
    *,
    num_inner_steps: int = 10,
    learning_rate: float = 0.01,
    early_stop_epsilon: float = 1e-5,
    early_stop_epsilon_step: float = 2e-5,
    gradient_checkpointing: bool = False,
) -> Trajectory:
    """Optimises an unconditional embedding ∅_i for each step, so that the guided step from z̄ leads to the next pivot:

        min over ∅_i of  ‖z*_{i+1} − z̄_{i+1}(z̄_i, ∅_i, words)‖²

    The optimiser is a fresh Adam for each step, which starts from the embedding of the step before. For Stable
    Diffusion XL, ∅_i is the embedding of the tokens and the pooled embedding.

    num_inner_steps: at most so many updates a step. learning_rate: falls to half over the run. A step stops early where
    the mean squared error is below early_stop_epsilon + early_stop_epsilon_step · i. gradient_checkpointing: recompute
    activations for the gradient instead of keeping them (Chen et al. 2016): less memory, a third more time, the same
    numbers.

    Deviations from the published code: the step uses the prediction that met the stopping criterion, where the code
    updates once more and predicts again; so a step costs one conditional row and at most num_inner_steps + 1
    unconditional ones. Where a step ends worse than it began it uses the best embedding it had, and a warning names
    it; the code continues from the last one.
    Raises ValueError for options that are out of range.
    """
    if not is_integer(num_inner_steps) or num_inner_steps < 0:
        raise ValueError(f"num_inner_steps must be a whole number from 0 on, not {num_inner_steps!r}")
    for name, number in (
        ("learning_rate", learning_rate),
        ("early_stop_epsilon", early_stop_epsilon),
        ("early_stop_epsilon_step", early_stop_epsilon_step),
    ):
        check_number(name, number)
    start = replace(start, noise=start.noise.clone())  # a tensor made in inference mode takes no part in autograd
    pivots, words = ddim_inversion(components, start, progress), components.text(start.prompt, start.clip_skip)
    embedding = components.text.encode_negative(start.negative_prompt, start.clip_skip).to(torch.float32)
    x, check = pivots[:1], FiniteCheck(components)
    latents, embeddings, diverged = [x], [], []
    for i, step in enumerate(progress(components.scheduler.steps(start.steps))):
        optimisation = NullTextStep(
            components,
            x,
            step,
            eps_cond=guided_noise(components, x, step.t, words, words, guidance_scale=1.0),
            pivot=pivots[i + 1 : i + 2],
            guidance_scale=start.guidance_scale,
            gradient_checkpointing=gradient_checkpointing,
        )
        rate = learning_rate * (1 - i / (2 * start.steps))
        stop = early_stop_epsilon + early_stop_epsilon_step * i
        embedding, x, is_worse = optimisation.run(embedding, num_inner_steps, rate, stop)
        diverged += [i + 1] if is_worse else []
        latents.append(check(x, i))
        embeddings.append(embedding)
    check.finish()
    if diverged:
        warnings.warn(
            f"null-text inversion diverged at step {', '.join(map(str, diverged))}; "
            "a lower guidance scale or learning rate may help",
            Notice,
            stacklevel=3,
        )
    conditioning = Conditioning(TextEmbedding.cat(embeddings).to("cpu"))
    return Trajectory.from_start(components, replace(start, conditioning=conditioning), torch.cat(latents).cpu())


@dataclass(frozen=True, eq=False)
class NullTextStep:
    """The optimisation of one step: from x, with the conditional prediction eps_cond, to the pivot; all 1 c h w."""

    components: Components
    x: Tensor
    step: Step
    eps_cond: Tensor
    pivot: Tensor
    guidance_scale: float
    gradient_checkpointing: bool = False

    def guided_step(self, embedding: TextEmbedding) -> Tensor:
        """The latents after a guided step with an unconditional embedding of one row, 1 c h w."""
        dtype = self.components.dtype
        eps_uncond = unet_noise(
            self.components,
            self.x.to(dtype),
            self.step.t,
            embedding.to(dtype),
            gradient_checkpointing=self.gradient_checkpointing,
        )
        eps = eps_uncond + self.guidance_scale * (self.eps_cond - eps_uncond)
        return self.components.scheduler.step(self.x, eps, self.step)

    def run(
        self, embedding: TextEmbedding, num_inner_steps: int, learning_rate: float, stop: float
    ) -> tuple[TextEmbedding, Tensor, bool]:
        """Optimises the embedding until the mean squared error is below `stop`.

        Returns the embedding, the latents that it leads to, and whether the optimisation ended worse than it began.
        """
        embedding = detached_copy(embedding)
        variables = [tensor for tensor in (embedding.tokens, embedding.pooled) if tensor is not None]
        for tensor in variables:
            tensor.requires_grad_()
        adam, losses, results = torch.optim.Adam(variables, lr=learning_rate, eps=1e-8 * LOSS_SCALE), [], []
        for update in range(num_inner_steps + 1):
            with torch.set_grad_enabled(update < num_inner_steps):
                x = self.guided_step(embedding)
                loss = F.mse_loss(x, self.pivot)
            losses.append(float(loss.detach()))
            results.append((detached_copy(embedding), x.detach()))
            if losses[-1] < stop or update == num_inner_steps:
                break
            adam.zero_grad()
            (loss * LOSS_SCALE).backward()
            adam.step()
        is_worse = not losses[-1] <= losses[0]  # also where the loss is NaN
        best = min(range(len(losses)), key=losses.__getitem__) if is_worse else -1
        return *results[best], is_worse


def detached_copy(embedding: TextEmbedding) -> TextEmbedding:
    """A copy without a graph."""
    pooled = None if embedding.pooled is None else embedding.pooled.detach().clone()
    return TextEmbedding(embedding.tokens.detach().clone(), pooled)
