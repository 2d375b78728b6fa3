"""Trains the tiny model to edit pictures by instructions: python -m minip2p.tiny.train_instruct --out FOLDER

InstructPix2Pix (Brooks et al. 2022, arXiv 2211.09800): a UNet that also reads the latents of a picture learns, from
pairs of pictures and an instruction, what the instruction makes of the picture. It starts as the model that ships; the
text encoder stays. The source's latents are the encoder's means, unscaled, and 5 % of the pairs are trained without
instruction, 5 % without picture, 5 % without both, as in the published code.

The weights of the new input channels start at zero, as in the paper. Pairs that were rendered are trained both ways.

Axes: b batch, c latent channels, h w height and width of a latent, j tokens.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.errors import run_guarded
from minip2p.pipeline import Pipeline, load
from minip2p.tiny.distill import Predict
from minip2p.tiny.export import export_model, trained_steps
from minip2p.tiny.latents import MAX_SCENES
from minip2p.tiny.loop import (
    Training,
    add_training_options,
    check_training_options,
    cooldown,
    seeded_generator,
)
from minip2p.tiny.pair_latents import MixedPairs, PairSource, RenderedChunks, rendered_pairs, table_pairs
from minip2p.tiny.scene_edits import instruction_words
from minip2p.tiny.sprites import Sprites, fetch_sprites
from minip2p.tiny.train_unet import denoising_loss, predict_with_maps
from minip2p.unet import UNet

BATCH = 32  # pairs in a step of the recipe, in which steps are counted
STEPS, LEARNING_RATE, EMA_DECAY = 8_000, 5e-4, 0.998
DROP = 0.05  # the share of pairs without instruction; as many are without picture, and as many without both
GUIDANCE = 3.0  # of the instruction, which the folder states as its default


def instruct_unet(model: Pipeline) -> UNet:
    """The UNet of a text-to-image model with channels for a picture, whose weights are zero."""
    weights = model.unet.state_dict()
    unet = UNet(replace(model.unet.config, in_channels=2 * model.vae.config.latent_channels))
    reads_noise = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([reads_noise, torch.zeros_like(reads_noise)], dim=1)
    unet.load_state_dict(weights)
    return unet.to(model.device)


def drop_conditions(
    source: Tensor, token_ids: Tensor, empty_ids: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pictures b c h w and instructions b j, of which some are empty: zeros, and `empty_ids`, j.

    One number decides both, as in diffusers' train_instruct_pix2pix.py: below DROP there is no instruction, below
    2 DROP there is neither, below 3 DROP there is no picture.
    """
    number = torch.rand(len(source), generator=generator, device=generator.device)
    without_text = number < 2 * DROP
    without_picture = (number >= DROP) & (number < 3 * DROP)
    return (
        torch.where(without_picture[:, None, None, None], 0.0, source),
        torch.where(without_text[:, None], empty_ids, token_ids),
    )


class InstructLoss:
    """The loss of a UNet that reads pictures. model: the text-to-image model that it comes from; its text encoder reads
    the instructions. predict: `predict_with_maps`, possibly compiled. All tensors are on the model's device."""

    def __init__(self, model: Pipeline, predict: Predict = predict_with_maps):
        self.text, self.vae, self.predict = model.text.encoders["text_encoder"], model.vae, predict
        self.alphas_cumprod = model.scheduler.alphas_cumprod.to(model.device)
        self.empty_ids = torch.tensor(model.text.prompt("").ids, device=model.device)

    def __call__(self, unet: UNet, source: Tensor, target: Tensor, token_ids: Tensor, seed: tuple[int, int]) -> Tensor:
        """`denoising_loss` of targets given sources, both b c h w, unscaled, and instructions b j.

        seed: of the draws.
        """
        generator = seeded_generator(*seed, 10, device=target.device)
        source, token_ids = drop_conditions(source, token_ids, self.empty_ids, generator)

        def denoise(x: Tensor, t: Tensor, ids: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
            with torch.no_grad():
                context = self.text(input_ids=ids).last_hidden_state
            both = torch.cat([x, source], dim=1).contiguous(memory_format=torch.channels_last)
            return self.predict(unet, both, t, context)

        loss, _ = denoising_loss(denoise, self.alphas_cumprod, self.vae.scale(target), token_ids, generator)
        return loss


def train_instruct(
    model: Pipeline,
    source: PairSource,
    work: Path,
    *,
    seed: int,
    stop_at: float = math.inf,
    steps: int = STEPS,
    size: int = BATCH,
    predict: Predict = predict_with_maps,
    warm_start: Path | None = None,
) -> tuple[UNet, int]:
    """The UNet with its averaged weights, and the number of steps of BATCH pairs.

    Resumes from the folder `work`. The arguments are those of `minip2p.tiny.distill.distil`.
    Raises ValueError for a model that does not predict noise or reads a picture already.
    """
    if model.scheduler.config.prediction_type != "epsilon" or model.components.extra_channels:
        raise ValueError("the model must predict noise and read nothing but its latents, as the small model does")
    begin = time.time()
    model.unet.requires_grad_(False)
    unet = instruct_unet(model).to(memory_format=torch.channels_last).requires_grad_(True)  # type: ignore[call-overload]
    loss_of = InstructLoss(model, predict)

    def learning_rate(step: int) -> float:
        return LEARNING_RATE * cooldown(time.time() - begin, stop_at - begin) * cooldown(step, steps)

    training = Training(
        unet,
        work,
        learning_rate=learning_rate,
        steps=steps,
        ema_decay=EMA_DECAY,
        seed=seed,
        stride=max(1, size // BATCH),
    )
    if warm_start is not None:
        training.warm_start(load(warm_start).unet.state_dict(), trained_steps(warm_start)["unet"])

    def loss(step: int) -> Tensor:
        batch = source.batch(step, BATCH * (step - training.start), size)
        return loss_of(unet, batch.source, batch.target, batch.token_ids, (seed, step))

    training.run(loss, stop_at=stop_at)
    training.load_average()
    return unet.requires_grad_(False), training.step


def write_instruct(folder: Path, model: Pipeline, unet: UNet, steps: int, origin: Path | None = None) -> None:
    """Writes the folder of a model that follows instructions: its UNet, and the other parts of the model that it comes
    from. origin: the folder of that model; if it is beside `folder`, those parts are not written a second time."""
    export_model(
        folder,
        model.vae,
        unet,
        model.text.encoders["text_encoder"],
        model.scheduler.config,
        scaling_factor=model.vae.config.scaling_factor,
        trained={"vae": 0, "unet": steps},
        words=instruction_words(),
        guidance=GUIDANCE,
        parts_from=origin,
    )


def open_pairs(options: argparse.Namespace, model: Pipeline, stack: ExitStack) -> PairSource:
    """The pairs of --data. Processes end with the stack."""
    kind, _, folder = options.data.partition(":")
    is_mixed = kind == "mixed" and bool(folder)
    name, seed, device = model.components.fingerprint[:8], options.seed, model.device
    sources: list[PairSource] = []
    if is_mixed or options.data == "rendered":
        load_sprites: Callable[[], Sprites] = partial(Sprites.load, fetch_sprites(options.work / "sprites"))
        if not options.workers:
            sprites = load_sprites()
            load_sprites = lambda: sprites  # noqa: E731, once for all
        chunks = RenderedChunks(model.vae, seed, load_sprites, count=options.pairs, workers=options.workers)
        sources.append(rendered_pairs(options.work, stack.enter_context(chunks), name, device))
    if is_mixed or options.data != "rendered":
        data = Path(folder if is_mixed else options.data)
        sources.append(table_pairs(options.work, data, model.vae, name, seed, device))
    return MixedPairs(*sources) if is_mixed else sources[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.train_instruct", description=__doc__.split("\n")[0])
    add_training_options(parser, batch=BATCH, steps=STEPS, examples="pairs")
    parser.add_argument(
        "--data",
        default="rendered",
        help="the pairs: rendered (the default), the folder of a data set of pairs, or mixed:FOLDER, half of each",
    )
    parser.add_argument("--pairs", type=int, default=MAX_SCENES, help=f"to render (default {MAX_SCENES})")
    parser.add_argument("--workers", type=int, default=0, help="processes that render pairs ahead (default: none)")
    options = parser.parse_args()

    def work() -> None:
        check_training_options(options, BATCH)
        stop_at = time.time() + 60 * options.minutes
        if options.workers < 0 or options.pairs < 1:
            raise ValueError(
                f"--workers must be at least 0 and --pairs at least 1, not {options.workers} and {options.pairs}"
            )
        model = load(options.model, device=options.device)
        with ExitStack() as stack:
            source = open_pairs(options, model, stack)
            on_gpu = options.device == "cuda"
            unet, steps = train_instruct(
                model,
                source,
                options.work / f"instruct-{model.components.fingerprint[:8]}",
                seed=options.seed,
                stop_at=stop_at,
                steps=options.steps,
                size=options.batch,
                predict=torch.compile(predict_with_maps, dynamic=False) if on_gpu else predict_with_maps,
                warm_start=options.warm,
            )
        if not steps:
            raise ValueError(f"the first step did not begin within --minutes {options.minutes:g}: give more time")
        write_instruct(options.out, model, unet, steps, options.model)

    return run_guarded(work)


if __name__ == "__main__":
    sys.exit(main())
