"""Distils the tiny model into one that needs four steps and no guidance: python -m minip2p.tiny.distill --out FOLDER

Consistency distillation in latent space (Luo et al. 2023, LCM, arXiv 2310.04378, algorithm 1). The student is asked for
the same picture from two neighbouring points of the trajectory of the teacher, which takes a DDIM step with guidance
between them. So the student's picture from any point is the one where the trajectory ends, and guidance is part of it.
The teacher's guidance scale is one number, that of the model, and no input of the student. The text encoder stays.

Axes: b batch, c latent channels, h w height and width of a latent.
"""

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.errors import run_guarded
from minip2p.io.files import shipped_weights
from minip2p.pipeline import Pipeline, load
from minip2p.tiny.batches import UNET_BATCH, Batch, BatchSource, CachedScenes
from minip2p.tiny.export import export_model, load_tokenizer
from minip2p.tiny.grounding import SLOTS, attention_targets, grounding_loss
from minip2p.tiny.latents import LatentCache
from minip2p.tiny.loop import Training, cooldown, half_precision, seeded_generator
from minip2p.tiny.sprites import Sprites, fetch_sprites
from minip2p.tiny.train_unet import GROUNDING_WEIGHT, SCHEDULER_CONFIG, predict_with_maps, stratified_timesteps
from minip2p.unet import UNet

STEPS, LEARNING_RATE, EMA_DECAY = 12_000, 2e-4, 0.998
POINTS = 50  # of the teacher's trajectory; the student samples at some of them
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of the boundary condition, see `boundary_scalings`
HUBER = 1e-3  # c of the pseudo-Huber loss √(d² + c²) − c

Predict = Callable[[UNet, Tensor, Tensor, Tensor], tuple[Tensor, dict[Site, Tensor]]]


def boundary_scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of f(x, t) = c_skip x + c_out x̂_0, as diffusers' LCMScheduler has them. t: b -> b 1 1 1.

    They make f(x, 0) = x (Song et al. 2023, eq. 5). From timestep 20 on c_skip is below 0.001.
    """
    scaled = TIMESTEP_SCALING * t.double()
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
    return c_skip.float()[:, None, None, None], c_out.float()[:, None, None, None]


class Distillation:
    """The loss of a student against its teacher.

    model: the teacher's pipeline. guidance_scale: the teacher's w. predict: `predict_with_maps`, possibly compiled. All
    tensors are on the model's device.
    """

    def __init__(self, model: Pipeline, guidance_scale: float, predict: Predict = predict_with_maps):
        self.text = model.text.encoders["text_encoder"]
        self.teacher, self.guidance_scale, self.predict = model.unet, guidance_scale, predict
        self.alphas_cumprod = model.scheduler.alphas_cumprod.to(model.device)
        self.spacing = len(self.alphas_cumprod) // POINTS

    @torch.no_grad()
    def context(self, token_ids: Tensor) -> Tensor:
        """Embeddings of captions, b j -> b j d."""
        with half_precision(token_ids.device):
            return self.text(input_ids=token_ids).last_hidden_state.float()

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1 − ᾱ) at timesteps t, b 1 1 1. At timestep −1 there is no noise left."""
        alpha_cumprod = torch.where(t < 0, 1.0, self.alphas_cumprod[t.clamp(min=0)])[:, None, None, None]
        return alpha_cumprod.sqrt(), (1 - alpha_cumprod).sqrt()

    @torch.no_grad()
    def teacher_step(self, x: Tensor, t: Tensor, context: Tensor, empty: Tensor) -> Tensor:
        """The latents at t − spacing: one DDIM step of the teacher with guidance, from latents x at t."""
        with half_precision(x.device):
            twice = x.repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
            both, _ = self.predict(self.teacher, twice, t.repeat(2), torch.cat([empty, context]))
        unconditional, conditional = both.float().chunk(2)
        eps = unconditional + self.guidance_scale * (conditional - unconditional)
        signal, noise = self.level(t)
        next_signal, next_noise = self.level(t - self.spacing)
        return next_signal * (x - noise * eps) / signal + next_noise * eps

    def endpoint(self, student: UNet, x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
        """f(x, t): the latents at the end of the trajectory, as a student predicts them, and its cross-attention maps.
        See `boundary_scalings`."""
        x = x.contiguous(memory_format=torch.channels_last)
        with half_precision(x.device):
            eps, maps = self.predict(student, x, t, context)
        (signal, noise), (c_skip, c_out) = self.level(t), boundary_scalings(t)
        return c_skip * x + c_out * (x - noise * eps.float()) / signal, maps

    def loss(self, student: UNet, x0: Tensor, batch: Batch, empty_ids: Tensor, generator: torch.Generator) -> Tensor:
        """The consistency loss of scaled latents x0 b c h w and their captions, with the grounding of the attention.

        The target is the student itself without a gradient, as in Song & Dhariwal 2023 (arXiv 2310.14189, section 3.2).
        """
        n = len(x0)
        t = (stratified_timesteps(n, POINTS, generator) + 1) * self.spacing - 1
        signal, noise = self.level(t)
        x = signal * x0 + noise * torch.randn(x0.shape, generator=generator, device=x0.device)
        context = self.context(batch.token_ids)
        empty = self.context(empty_ids[None]).expand_as(context)
        x_next = self.teacher_step(x, t, context, empty)
        with torch.no_grad():
            next_t = t - self.spacing
            target, _ = self.endpoint(student, x_next, next_t.clamp(min=0), context)
            target = torch.where((next_t < 0)[:, None, None, None], x_next, target)
        prediction, maps = self.endpoint(student, x, t, context)
        huber = ((prediction - target).square() + HUBER**2).sqrt() - HUBER
        grounding = grounding_loss(maps, attention_targets(batch.slots, batch.regions))
        return huber.mean() + GROUNDING_WEIGHT * grounding


def distil(
    model: Pipeline,
    source: BatchSource,
    work: Path,
    *,
    seed: int,
    stop_at: float,
    steps: int = STEPS,
    size: int = UNET_BATCH,
    guidance_scale: float | None = None,
    predict: Predict = predict_with_maps,
) -> tuple[UNet, int]:
    """The student's UNet with its averaged weights, and the number of steps of UNET_BATCH pictures. Resumes from
    `work`/distil.

    stop_at: the time (time.time()) after which it stops; over the last 3 tenths of the time, or of the steps, the
    learning rate falls to zero. size: the pictures of a step, a multiple of UNET_BATCH. guidance_scale: None is the
    model's own. predict: see `Distillation`.
    """
    begin = time.time()
    torch.manual_seed(seed)
    model.unet.requires_grad_(False)
    student = deepcopy(model.unet).to(memory_format=torch.channels_last).requires_grad_(True)  # type: ignore[call-overload]
    scale = model.default_guidance if guidance_scale is None else guidance_scale
    distillation, scaling_factor = Distillation(model, scale, predict), model.vae.config.scaling_factor
    empty_ids = torch.tensor(model.text.prompt("").ids, device=model.device)

    def learning_rate(step: int) -> float:
        by_time = 1.0 if math.isinf(stop_at) else cooldown(time.time() - begin, stop_at - begin)
        return LEARNING_RATE * by_time * cooldown(step, steps)

    training = Training(
        student,
        work / "distil",
        learning_rate=learning_rate,
        steps=steps,
        ema_decay=EMA_DECAY,
        seed=seed,
        stride=max(1, size // UNET_BATCH),
    )

    def loss(step: int) -> Tensor:
        batch = source.batch(step, UNET_BATCH * step, size)
        generator = seeded_generator(seed, step, 8, device=model.device)
        return distillation.loss(student, scaling_factor * batch.latents, batch, empty_ids, generator)

    training.run(loss, stop_at=stop_at)
    training.load_average()
    return student.requires_grad_(False), training.step


def compile_ahead(folder: Path, size: int, device: torch.device) -> None:
    """Compiles a step of a distillation for batches of this size, as `minip2p.tiny.train_unet.compile_ahead` does for
    the teacher's training. folder: any weights of the teacher."""
    model = load(folder, device=device)
    model.unet.requires_grad_(False)
    student = deepcopy(model.unet).to(memory_format=torch.channels_last).requires_grad_(True)  # type: ignore[call-overload]
    side, empty = model.unet.config.sample_size, torch.tensor(model.text.prompt("").ids)
    batch = Batch(
        torch.zeros(size, model.vae.config.latent_channels, side, side, device=device),
        torch.zeros(size, SLOTS, side, side, device=device),
        empty.to(device).repeat(size, 1),
        torch.zeros(size, len(empty), dtype=torch.long),
    )
    distillation = Distillation(model, 1.0, torch.compile(predict_with_maps, dynamic=False))
    distillation.loss(student, batch.latents, batch, empty.to(device), seeded_generator(0, device=device)).backward()


def write_student(folder: Path, model: Pipeline, student: UNet, steps: int) -> None:
    """Writes the folder of a student: its UNet, and the other parts of its teacher."""
    export_model(
        folder,
        model.vae,
        student,
        model.text.encoders["text_encoder"],
        SCHEDULER_CONFIG,
        scaling_factor=model.vae.config.scaling_factor,
        trained={"vae": 0, "unet": steps},
        words=sorted(model.text.known_words),
        guidance=1.0,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.distill", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints and caches (default .train)")
    parser.add_argument("--model", type=Path, default=shipped_weights("tiny"), help="the folder of the teacher")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {UNET_BATCH} pictures each (default {STEPS})")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time and write the weights")
    options = parser.parse_args()

    def work() -> None:
        stop_at = time.time() + 60 * options.minutes
        model, sprites = load(options.model), Sprites.load(fetch_sprites(options.work / "sprites"))
        digest = hashlib.sha256((options.model / "vae/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
        latents = LatentCache(options.work / f"latents-{options.seed}-{digest[:8]}", model.vae, options.seed, sprites)
        source = CachedScenes(latents, load_tokenizer(), directions=False)
        student, steps = distil(model, source, options.work, seed=options.seed, stop_at=stop_at, steps=options.steps)
        write_student(options.out, model, student, steps)

    return run_guarded(work)


if __name__ == "__main__":
    sys.exit(main())
