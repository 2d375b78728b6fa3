"""Trains the judge on renders, and examines it on held-out ones: python -m minip2p.tiny.judge_train --work DIR

Every step renders new scenes. One half of the pictures is encoded and decoded by the VAE of a model, because the
pictures that the judge will read come out of it. Most of the others are slightly corrupted (blur, noise, brightness,
JPEG). The examination uses renders of combinations that are never trained on, as they are, corrupted and decoded.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.errors import run_guarded
from minip2p.pipeline import load
from minip2p.tiny.judge import FOLDER, Judge
from minip2p.tiny.judge_data import IGNORE_LABEL, LabelledBatch, label_renders, reconstruct
from minip2p.tiny.judge_exam import print_exam
from minip2p.tiny.judge_network import JudgeConfig, JudgeNetwork, JudgeOutput
from minip2p.tiny.loop import Training, check_length, cooldown, half_precision
from minip2p.tiny.render import render, stack_pictures
from minip2p.tiny.scenes import dataset
from minip2p.tiny.sprites import Sprites, fetch_sprites
from minip2p.vae import VAE

STEPS, BATCH, LEARNING_RATE = 12000, 16, 1e-3


def judge_loss(network: JudgeNetwork, batch: LabelledBatch) -> Tensor:
    """Cross-entropies of foreground, class, object, colour, background and style, and squared errors of strength.

    Classes are trained only where there is an object, and colours are read under the true masks, so that each can be
    learnt before the others are. The weights make the terms about equal at the start.
    """
    with half_precision(batch.pictures.device):
        out = network(batch.pictures.contiguous(memory_format=torch.channels_last))
    out = JudgeOutput(*(tensor.float() for tensor in out))
    cells = batch.labels[:, 2::4, 2::4]  # b H/4 W/4
    covers = F.one_hot(cells, 1 + out.classes.shape[1])[..., 1:].movedim(3, 1).float()
    colours, has_colour = network.colours(out.features, covers), batch.colours != IGNORE_LABEL
    if has_colour.any():
        colour_loss = F.cross_entropy(colours[has_colour], batch.colours[has_colour])
    else:
        colour_loss = colours.sum() * 0
    return (
        5 * F.binary_cross_entropy_with_logits(out.foreground, (batch.labels > 0).float())
        + 2 * F.cross_entropy(out.classes, cells - 1, ignore_index=-1)
        + 10 * F.binary_cross_entropy_with_logits(out.objects, batch.present)
        + colour_loss
        + F.cross_entropy(out.background, batch.background)
        + F.cross_entropy(out.style, batch.style)
        + 60 * F.mse_loss(out.strength, batch.strength)
    )


def judge_batch(step: int, seed: int, sprites: Sprites, vae: VAE) -> LabelledBatch:
    """The batch of a step: new scenes, every second decoded by the VAE, most of the others corrupted."""
    scenes = list(dataset(seed, BATCH, start=step * BATCH))
    renders = [render(scene, sprites) for scene in scenes]
    batch = label_renders(scenes, renders, JudgeConfig(), corrupt_seed=seed)
    clean = stack_pictures(renders[::2])
    with half_precision(clean.device):
        batch.pictures[::2] = reconstruct(vae, clean).float()
    return batch


def train(
    work: Path,
    seed: int,
    batches: Callable[[int], LabelledBatch],
    stop_at: float,
    *,
    steps: int = STEPS,
    warm_start: Judge | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008, it is immutable
    stride: int = 1,
    stop_ends: bool = False,
    rate: float = LEARNING_RATE,
) -> tuple[Judge, bool]:
    """The judge with its averaged weights, and whether its training is complete. Resumes from checkpoints in `work`.

    batches(step): the batch of a step, on the device; see `judge_batch`. stop_at: the time (time.time()) after which it
    stops. warm_start: a judge to start from. stride: see `Training`. stop_ends: the training is complete at that time
    as well, so that its learning rate falls to zero before it. rate: the learning rate before it falls, for batches of
    BATCH pictures.
    """
    begin = time.time()
    torch.manual_seed(seed)
    config = JudgeConfig()
    network = JudgeNetwork(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def learning_rate(step: int) -> float:
        by_time = cooldown(time.time() - begin, stop_at - begin) if stop_ends else 1.0
        return rate * cooldown(step, steps) * by_time

    training = Training(
        network, work, learning_rate=learning_rate, steps=steps, ema_decay=0.998, seed=seed, stride=stride
    )
    if warm_start:
        training.warm_start(warm_start.network.state_dict(), 0)
    training.run(lambda step: judge_loss(network, batches(step)), stop_at=stop_at)
    training.load_average()
    return Judge(network, config), stop_ends or training.step >= steps


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.judge_train", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints and sprites (default .train)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the weights")
    parser.add_argument("--model", type=Path, help="the model whose VAE decodes (default: the one that ships)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH} pictures each (default {STEPS})")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time, to be resumed later")
    parser.add_argument(
        "--warm", type=Path, metavar="FOLDER", help="start from this judge, unless --work has a checkpoint"
    )
    parser.add_argument("--exam", action="store_true", help="do not train: examine the weights that are there")
    options = parser.parse_args()

    def work() -> None:
        check_length(options.steps, options.minutes)
        sprites, vae = Sprites.load(fetch_sprites(options.work / "sprites")), load(options.model).vae
        if not options.exam:
            judge, complete = train(
                options.work / "judge",
                options.seed,
                partial(judge_batch, seed=options.seed, sprites=sprites, vae=vae),
                time.time() + 60 * options.minutes,
                steps=options.steps,
                warm_start=Judge.load(options.warm) if options.warm else None,
            )
            if not complete:
                return print("the training is not complete: run the same command again to resume it")
            judge.save(options.out)
        return print_exam(Judge.load(options.out), sprites, vae)

    return run_guarded(work)


if __name__ == "__main__":
    sys.exit(main())
