"""Trains the tiny model and writes it to `weights/tiny`: python -m minip2p.tiny.train

The stages: train the VAE; if asked for, train its decoder on; train the UNet and the text encoder together; if asked
for, train the judge. Each stage resumes where it stopped. The draws of step i depend on the seed and i alone. Without
checkpoints, `--warm weights/tiny` starts from weights that were written before. Every 500 steps twelve sample pictures
are written.

On a CPU every step draws its own captions, and latents are encoded once and cached on disk. With `--workers`, as on a
GPU, processes render all scenes ahead, and the device keeps them.

On Linux, GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1 in the
environment keeps the CPU's allocator from returning large buffers at every step. A step then takes a third less time.
"""

import argparse
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minip2p.errors import run_guarded
from minip2p.io.files import shipped_weights
from minip2p.pipeline import load
from minip2p.tiny.batches import UNET_BATCH, BatchSource, CachedScenes
from minip2p.tiny.distill import Predict, distil, write_student
from minip2p.tiny.distill import compile_ahead as compile_distillation_ahead
from minip2p.tiny.export import export_model, load_tokenizer
from minip2p.tiny.judge import Judge
from minip2p.tiny.judge_train import BATCH as JUDGE_BATCH
from minip2p.tiny.judge_train import train as train_judge
from minip2p.tiny.latents import MAX_SCENES, LatentCache
from minip2p.tiny.loop import check_device, check_length, check_output
from minip2p.tiny.scene_store import SceneStore
from minip2p.tiny.scenes import caption_words
from minip2p.tiny.sprites import Sprites, fetch_sprites
from minip2p.tiny.train_decoder import LEARNING_RATE as DECODER_RATE
from minip2p.tiny.train_decoder import train_decoder
from minip2p.tiny.train_unet import SCHEDULER_CONFIG, Denoiser, UNetRun, predict_with_maps, preview_sheet, train_unet
from minip2p.tiny.train_unet import compile_ahead as compile_unet_ahead
from minip2p.tiny.train_vae import CROP_STEPS, FREEZE_STEP, VAE_STEPS, train_vae, vae_batch
from minip2p.vae import VAE

GPU_BATCHES = 256, 512, 1024, 2048  # of the UNet; the fastest is taken
# Pictures in a step where they come from a store, and how many times as many they are as in the recipe (`Training`).
STORE_BATCH, STORE_VAE_STRIDE = 32, 8  # of the VAE
STORE_JUDGE_STRIDE, STORE_JUDGE_RATE = 8, 2.5e-4  # of the judge, which is trained on, and its learning rate
STORE_DECODER_BATCH, STORE_DECODER_RATE = 192, 1e-3  # of the VAE that is trained on, and its learning rate
DISTIL_BATCH = 512
COMPILER_SECONDS = 60  # to wait for a compiler that has run ahead


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.train", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints and caches (default .train)")
    parser.add_argument("--out", type=Path, default=Path("weights/tiny"), help="folder for the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40_000, help=f"of the UNet, of {UNET_BATCH} pictures each")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop after this time and write the weights (once the VAE is done)",
    )
    parser.add_argument(
        "--until", type=float, default=math.inf, metavar="SECONDS", help="stop then, in seconds since 1970 (date +%%s)"
    )
    parser.add_argument(
        "--warm",
        type=Path,
        metavar="FOLDER",
        help="start from the weights in this folder, unless --work has checkpoints",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--batch",
        type=batch_sizes,
        metavar="N[,N…]",
        help=f"pictures in a step of the UNet, the fastest of several (default {UNET_BATCH}; on a GPU "
        f"{','.join(map(str, GPU_BATCHES))}); with --workers, other parts take no more",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that render all scenes ahead (default: on a GPU one for each core but one; on a CPU none)",
    )
    parser.add_argument("--scenes", type=int, default=MAX_SCENES, help=f"to render ahead (default {MAX_SCENES})")
    parser.add_argument("--decay", action="store_true", help="let the learning rate fall to zero over the last fifth")
    parser.add_argument(
        "--directions", action="store_true", help='captions say to which side things look ("facing left")'
    )
    parser.add_argument("--decoder", type=float, default=0, metavar="MINUTES", help="train the VAE's decoder on first")
    parser.add_argument(
        "--encoder", action="store_true", help="with --decoder and --workers: the encoder too, so that latents change"
    )
    parser.add_argument(
        "--adversarial", type=float, default=0, metavar="WEIGHT", help="of a discriminator, for the decoder (default 0)"
    )
    parser.add_argument(
        "--judge", type=float, default=0, metavar="MINUTES", help="of --minutes, for training the judge; with --workers"
    )
    parser.add_argument(
        "--distil",
        type=float,
        default=0,
        metavar="MINUTES",
        help="of --minutes, for a model that needs four steps (see minip2p.tiny.distill); with --workers",
    )
    parser.add_argument("--distil-out", type=Path, default=Path("weights/tiny-fast"), help="folder for its weights")
    parser.add_argument("--judge-out", type=Path, default=Path("weights/judge"), help="folder for the judge's weights")
    options = parser.parse_args()
    return run_guarded(lambda: train(options))


def batch_sizes(text: str) -> tuple[int, ...]:
    """Numbers of pictures, separated by commas, in ascending order. Argparse reports what it raises."""
    sizes = tuple(sorted({int(part) for part in text.split(",")}))
    if any(size < 1 or (size > UNET_BATCH and size % UNET_BATCH) for size in sizes):
        raise argparse.ArgumentTypeError(f"batches above {UNET_BATCH} must be multiples of it, not {text}")
    return sizes


def train(options: argparse.Namespace) -> None:
    """Runs the stages, as far as the time allows."""
    check_length(options.steps, options.minutes)
    if options.distil:
        check_output(options.distil_out, {"--out": options.out, "--judge-out": options.judge_out}, "--distil-out")
    stop_at, device = min(time.time() + 60 * options.minutes, options.until), torch.device(options.device)
    on_gpu = device.type == "cuda"
    check_device(options.device)
    torch.backends.cudnn.benchmark = on_gpu
    workers = options.workers if options.workers is not None else max(1, (os.cpu_count() or 2) - 1) if on_gpu else 0
    if options.judge and not workers:
        raise ValueError("--judge needs --workers; on a CPU train the judge with python -m minip2p.tiny.judge_train")
    if options.distil and not workers:
        raise ValueError("--distil needs --workers; on a CPU use python -m minip2p.tiny.distill")
    if options.encoder and not workers:
        raise ValueError("--encoder needs --workers: the latents on disk would not be those of the new encoder")
    load_sprites = partial(Sprites.load, fetch_sprites(options.work / "sprites"))
    if not workers:
        return train_from_disk(options, load_sprites(), stop_at)
    with SceneStore(
        options.scenes, options.seed, load_sprites, workers=workers, device=device, directions=options.directions
    ) as store:
        return train_from_store(options, store, stop_at)


def train_from_disk(options: argparse.Namespace, sprites: Sprites, stop_at: float) -> None:
    """The training on a CPU: pictures are rendered when they are needed, and latents are cached on disk."""
    seed = options.seed

    def pictures(step: int) -> Tensor:
        return vae_batch(seed, step, sprites)

    vae, vae_steps = train_vae(options.work, seed, pictures, stop_at, options.warm)
    if vae_steps < VAE_STEPS:
        return print("the training of the VAE is not complete: run the same command again to resume it")
    vae = decoder_stage(options, vae, lambda step: pictures(CROP_STEPS + step), stop_at)
    latents = LatentCache(options.work / f"latents-{seed}-{FREEZE_STEP}", vae, seed, sprites)
    return unet_stage(options, vae, vae_steps, CachedScenes(latents, load_tokenizer(), options.directions), stop_at)


def train_from_store(options: argparse.Namespace, store: SceneStore, stop_at: float) -> None:
    """The training on a GPU: scenes that worker processes render are kept in its memory."""
    largest = max(options.batch or GPU_BATCHES)
    vae_size, judge_size = min(STORE_BATCH, largest), min(JUDGE_BATCH * STORE_JUDGE_STRIDE, largest)

    def vae_pictures(step: int) -> Tensor:
        return store.picture_batch(step, vae_size * (step // STORE_VAE_STRIDE), vae_size)

    decoder_size, distil_size = min(STORE_DECODER_BATCH, largest), min(DISTIL_BATCH, largest)
    compile_early = store.device.type == "cuda" and len(options.batch or ()) == 1  # else the batch is not known yet
    compiler = start_process(compile_unet_ahead, largest, store.device) if compile_early else None
    vae, vae_steps = train_vae(
        options.work,
        options.seed,
        vae_pictures,
        stop_at,
        options.warm,
        device=store.device,
        stride=STORE_VAE_STRIDE,
    )
    if vae_steps < VAE_STEPS:
        return print("the training of the VAE is not complete: run the same command again to resume it")
    vae = decoder_stage(
        options,
        vae,
        lambda step: store.picture_batch(step, decoder_size * step, decoder_size),
        stop_at,
        rate=STORE_DECODER_RATE,
    )
    store.set_vae(vae)
    later = 60 * (options.distil + options.judge)
    teacher = options.warm or shipped_weights("tiny")  # any of its weights
    if is_compiled := compiler is not None and ends_well(compiler):
        compiler = start_process(compile_distillation_ahead, teacher, distil_size, store.device)
    unet_stage(options, vae, vae_steps, store, stop_at - later, compiled_ahead=is_compiled)
    if options.distil:
        predict = predict_with_maps
        if is_compiled and compiler is not None and ends_well(compiler):
            predict = torch.compile(predict_with_maps, dynamic=False)
        distil_stage(options, store, stop_at - 60 * options.judge, predict, distil_size)
    if options.judge:
        judge, _ = train_judge(
            options.work / "judge",
            options.seed,
            lambda step: store.judge_batch(step, judge_size * (step // STORE_JUDGE_STRIDE), judge_size),
            stop_at,
            warm_start=Judge.load(),
            device=store.device,
            stride=STORE_JUDGE_STRIDE,
            stop_ends=True,
            rate=STORE_JUDGE_RATE,
        )
        judge.save(options.judge_out)
    preview_sheet(load(options.out, device=store.device)).save(options.work / "unet/samples-last.png")
    return None


def decoder_stage(
    options: argparse.Namespace,
    vae: VAE,
    pictures: Callable[[int], Tensor],
    stop_at: float,
    rate: float = DECODER_RATE,
) -> VAE:
    """The VAE with a decoder that has been trained on, if that is asked for. After an error, the VAE as it is: the
    rest of the time should not be lost to it."""
    if not options.decoder:
        return vae
    until, better = min(stop_at, time.time() + 60 * options.decoder), deepcopy(vae)
    try:
        train_decoder(
            better,
            options.work,
            pictures,
            seed=options.seed,
            stop_at=until,
            adversarial=options.adversarial,
            encoder=options.encoder,
            rate=rate,
        )
    except (RuntimeError, FloatingPointError):
        traceback.print_exc()
        print("the training of the decoder failed; going on without it", flush=True)
        return vae
    return better


def start_process(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process of its own that runs a function."""
    process = get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


def ends_well(process: BaseProcess) -> bool:
    """Whether a process ends without an error within COMPILER_SECONDS. It is killed otherwise."""
    process.join(timeout=COMPILER_SECONDS)
    if process.exitcode is None:
        process.kill()
    return process.exitcode == 0


def distil_stage(options: argparse.Namespace, store: SceneStore, stop_at: float, predict: Predict, size: int) -> None:
    """Distils the model that has been written, in batches of `size`. After an error, the other stages go on."""
    try:
        teacher = load(options.out, device=store.device)
        student, steps = distil(
            teacher,
            store,
            options.work,
            seed=options.seed,
            stop_at=stop_at,
            size=size,
            predict=predict,
        )
        if not steps:
            return print("the time was too short for the distillation: no student was written", flush=True)
        write_student(options.distil_out, teacher, student, steps, options.out)
    except (RuntimeError, FloatingPointError):
        traceback.print_exc()
        print("the distillation failed; going on without it", flush=True)


def unet_stage(
    options: argparse.Namespace,
    vae: VAE,
    vae_steps: int,
    source: BatchSource,
    stop_at: float,
    *,
    compiled_ahead: bool = False,
) -> None:
    """Trains the UNet and the text encoder, and writes the model."""
    scaling_factor = source.scaling_factor()

    def write(folder: Path, denoiser: Denoiser, unet_steps: int) -> None:
        export_model(
            folder,
            vae,
            denoiser.unet,
            denoiser.text,
            SCHEDULER_CONFIG,
            scaling_factor=scaling_factor,
            trained={"vae": vae_steps, "unet": unet_steps},
            words=caption_words(directions=options.directions),
        )

    device = torch.device(options.device)
    default = GPU_BATCHES if device.type == "cuda" else (UNET_BATCH,)
    run = UNetRun(
        options.work,
        options.out,
        options.seed,
        options.steps,
        options.warm,
        stop_at,
        device=device,
        batches=options.batch or default,
        decay=options.decay,
        compiled_ahead=compiled_ahead,
    )
    train_unet(run, source, write)


if __name__ == "__main__":
    sys.exit(main())
