"""Distils the tiny model into one that needs four steps and no guidance: python -m minip2p.tiny.distill --out FOLDER

Consistency distillation in latent space (Luo et al. 2023, LCM, arXiv 2310.04378, algorithm 1). The student is asked for
the same picture from two neighbouring points of the trajectory of the teacher, which takes a DDIM step with guidance
between them. So the student's picture from any point is the one where the trajectory ends, and guidance is part of it.
The text encoder stays. The student's folder names `LCMScheduler`, by which minip2p and diffusers sample it.

Deviations from the paper: the teacher's guidance scale is one number, that of the model, and no input of the student.
The target is not a moving average of the student but the student itself, without a gradient (Song & Dhariwal 2023,
arXiv 2310.14189, section 3.2). The distance is the pseudo-Huber loss of each number, with its mean, as in diffusers'
training script of LCM; theirs is of the whole difference. A moving average is what is written.

Axes: b batch, c latent channels, h w height and width of a latent.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.config import LCMSchedulerConfig
from minip2p.errors import run_guarded
from minip2p.pipeline import Pipeline, load
from minip2p.sched import LCMScheduler
from minip2p.tiny.batches import UNET_BATCH, Batch, BatchSource, CachedScenes
from minip2p.tiny.export import export_model, load_tokenizer, trained_steps
from minip2p.tiny.grounding import SLOTS, attention_targets, grounding_loss
from minip2p.tiny.latents import MAX_SCENES, LatentCache
from minip2p.tiny.loop import (
    Training,
    add_training_options,
    check_training_options,
    cooldown,
    half_precision,
    seeded_generator,
)
from minip2p.tiny.scene_store import SceneStore
from minip2p.tiny.sprites import Sprites, fetch_sprites
from minip2p.tiny.train_unet import GROUNDING_WEIGHT, predict_with_maps, stratified_timesteps
from minip2p.unet import UNet

STEPS, LEARNING_RATE, EMA_DECAY = 12_000, 2e-4, 0.998
POINTS = 50  # of the teacher's trajectory; the student samples at some of them
HUBER = 1e-3  # c of the pseudo-Huber loss √(d² + c²) − c

Predict = Callable[[UNet, Tensor, Tensor, Tensor], tuple[Tensor, dict[Site, Tensor]]]


def student_scheduler(model: Pipeline) -> LCMScheduler:
    """The scheduler of a student: LCM on the noise schedule of its teacher, with the points of the distillation."""
    fields = asdict(model.scheduler.config) | {"original_inference_steps": POINTS}
    return LCMScheduler(LCMSchedulerConfig(**fields))


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
        boundary = map(student_scheduler(model).boundary_scalings, range(len(self.alphas_cumprod)))
        self.boundary = torch.tensor([*boundary], device=model.device)  # c_skip and c_out of each timestep

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
        """f(x, t) = c_skip x + c_out x̂_0 (eq. 9): the latents at the end of the trajectory, as a student predicts them,
        and its cross-attention maps."""
        x = x.contiguous(memory_format=torch.channels_last)
        with half_precision(x.device):
            eps, maps = self.predict(student, x, t, context)
        signal, noise = self.level(t)
        c_skip, c_out = self.boundary[t][:, :, None, None, None].unbind(1)
        return c_skip * x + c_out * (x - noise * eps.float()) / signal, maps

    def loss(self, student: UNet, x0: Tensor, batch: Batch, empty_ids: Tensor, generator: torch.Generator) -> Tensor:
        """The consistency loss of scaled latents x0 b c h w and their captions, with the grounding of the attention."""
        n = len(x0)
        t = (stratified_timesteps(n, POINTS, generator) + 1) * self.spacing - 1
        signal, noise = self.level(t)
        x = signal * x0 + noise * torch.randn(x0.shape, generator=generator, device=x0.device)
        context = self.context(batch.token_ids)
        empty = self.context(empty_ids[None]).expand_as(context)
        x_next = self.teacher_step(x, t, context, empty)
        with torch.no_grad():
            # After the last point is timestep −1. The endpoint at timestep 0 is x_next itself, as it is there.
            target, _ = self.endpoint(student, x_next, (t - self.spacing).clamp(min=0), context)
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
    predict: Predict = predict_with_maps,
    warm_start: Path | None = None,
) -> tuple[UNet, int]:
    """The student's UNet with its averaged weights, and the number of steps of UNET_BATCH pictures.

    Resumes from a folder in `work` that is named after the teacher's weights.

    stop_at: the time (time.time()) after which it stops; over the last 3 tenths of the time, or of the steps, the
    learning rate falls to zero. size: the pictures of a step, a multiple of UNET_BATCH. predict: see `Distillation`.
    warm_start: the folder of a student to start from, whose steps are counted on; else the student starts as its
    teacher. Raises ValueError for a teacher that does not predict noise, and for a folder that does not say its steps.
    """
    if model.scheduler.config.prediction_type != "epsilon":
        raise ValueError("the teacher must predict noise, as the small model does")
    begin = time.time()
    torch.manual_seed(seed)
    model.unet.requires_grad_(False)
    student = deepcopy(model.unet).to(memory_format=torch.channels_last).requires_grad_(True)  # type: ignore[call-overload]
    distillation = Distillation(model, model.default_guidance, predict)
    scaling_factor = model.vae.config.scaling_factor
    empty_ids = torch.tensor(model.text.prompt("").ids, device=model.device)

    def learning_rate(step: int) -> float:
        return LEARNING_RATE * cooldown(time.time() - begin, stop_at - begin) * cooldown(step, steps)

    training = Training(
        student,
        work / f"distil-{model.components.fingerprint[:8]}",
        learning_rate=learning_rate,
        steps=steps,
        ema_decay=EMA_DECAY,
        seed=seed,
        stride=max(1, size // UNET_BATCH),
    )

    if warm_start is not None:
        training.warm_start(load(warm_start).unet.state_dict(), trained_steps(warm_start)["unet"])

    def loss(step: int) -> Tensor:
        batch = source.batch(step, UNET_BATCH * (step - training.start), size)
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
    side, empty = model.components.latent_size(None), torch.tensor(model.text.prompt("").ids)
    batch = Batch(
        torch.zeros(size, model.vae.config.latent_channels, *side, device=device),
        torch.zeros(size, SLOTS, *side, device=device),
        empty.to(device).repeat(size, 1),
        torch.zeros(size, len(empty), dtype=torch.long),
    )
    distillation = Distillation(model, 1.0, torch.compile(predict_with_maps, dynamic=False))
    distillation.loss(student, batch.latents, batch, empty.to(device), seeded_generator(0, device=device)).backward()


def write_student(folder: Path, model: Pipeline, student: UNet, steps: int, teacher: Path | None = None) -> None:
    """Writes the folder of a student: its UNet, and the other parts of its teacher.

    teacher: its folder; if it is beside `folder`, those parts are not written a second time (see `export_model`).
    """
    export_model(
        folder,
        model.vae,
        student,
        model.text.encoders["text_encoder"],
        student_scheduler(model).config,
        scaling_factor=model.vae.config.scaling_factor,
        trained={"vae": 0, "unet": steps},
        words=sorted(model.text.known_words),
        guidance=1.0,
        parts_from=teacher,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.distill", description=__doc__.split("\n")[0])
    add_training_options(parser, batch=UNET_BATCH, steps=STEPS, examples="pictures")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that render all scenes ahead, for a GPU (default: none; latents are cached on disk)",
    )
    parser.add_argument("--scenes", type=int, default=MAX_SCENES, help=f"to render ahead (default {MAX_SCENES})")
    options = parser.parse_args()

    def work() -> None:
        stop_at = time.time() + 60 * options.minutes
        if options.workers < 0 or options.scenes < 1:
            raise ValueError(
                f"--workers must be at least 0 and --scenes at least 1, not {options.workers} and {options.scenes}"
            )
        if options.device == "cuda" and not options.workers:
            raise ValueError("--device cuda needs --workers, the number of processes that render scenes for it")
        check_training_options(options, UNET_BATCH)
        model, folder = load(options.model, device=options.device), fetch_sprites(options.work / "sprites")
        if not options.workers:
            digest = hashlib.sha256(
                (options.model / "vae/diffusion_pytorch_model.safetensors").read_bytes()
            ).hexdigest()
            cache = options.work / f"latents-{options.seed}-{digest[:8]}"
            latents = LatentCache(cache, model.vae, options.seed, Sprites.load(folder))
            return train(model, CachedScenes(latents, load_tokenizer(), directions=False), predict_with_maps, stop_at)
        with SceneStore(
            options.scenes,
            options.seed,
            partial(Sprites.load, folder),
            workers=options.workers,
            device=torch.device(options.device),
        ) as store:
            store.set_vae(model.vae)
            on_gpu = options.device == "cuda"
            predict = torch.compile(predict_with_maps, dynamic=False) if on_gpu else predict_with_maps
            return train(model, store, predict, stop_at)

    def train(model: Pipeline, source: BatchSource, predict: Predict, stop_at: float) -> None:
        student, steps = distil(
            model,
            source,
            options.work,
            seed=options.seed,
            stop_at=stop_at,
            steps=options.steps,
            size=options.batch,
            predict=predict,
            warm_start=options.warm,
        )
        if not steps:
            raise ValueError(f"the first step did not begin within --minutes {options.minutes:g}: give more time")
        write_student(options.out, model, student, steps, options.model)

    return run_guarded(work)


if __name__ == "__main__":
    sys.exit(main())
