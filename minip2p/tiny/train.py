"""Trains the tiny model from nothing and writes it to `weights/tiny`: python -m minip2p.tiny.train

The stages: train the VAE; encode the pictures to latents once; train the UNet and the text encoder together. Each stage
resumes where it stopped. The draws of step i depend on the seed and i alone. Without checkpoints, `--warm weights/tiny`
starts from weights that were written before. Every 500 steps twelve sample pictures are written.

On Linux, GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1 in the
environment keeps the allocator from returning large buffers at every step. A step then takes a third less time.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from minip2p.errors import run_guarded
from minip2p.tiny.export import export_model
from minip2p.tiny.latents import LatentCache
from minip2p.tiny.sprites import Sprites, fetch_sprites
from minip2p.tiny.train_unet import SCHEDULER_CONFIG, UNET_BATCH, Denoiser, UNetRun, train_unet
from minip2p.tiny.train_vae import FREEZE_STEP, VAE_STEPS, train_vae


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.train", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints and caches (default .train)")
    parser.add_argument("--out", type=Path, default=Path("weights/tiny"), help="folder for the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40_000, help=f"of the UNet, with {UNET_BATCH} pictures each")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop after this time and write the weights (once the VAE is done)",
    )
    parser.add_argument(
        "--warm",
        type=Path,
        metavar="FOLDER",
        help="start from the weights in this folder, unless --work has checkpoints",
    )
    options = parser.parse_args()
    return run_guarded(lambda: train(options))


def train(options: argparse.Namespace) -> None:
    """Runs the stages, as far as the time allows."""
    stop_at = time.time() + 60 * options.minutes
    sprites = Sprites.load(fetch_sprites(options.work / "sprites"))
    vae, vae_steps = train_vae(options.work, options.seed, sprites, stop_at, options.warm)
    if vae_steps < VAE_STEPS:
        print("the training of the VAE is not complete: run the same command again to resume it")
        return
    latents = LatentCache(options.work / f"latents-{options.seed}-{FREEZE_STEP}", vae, options.seed, sprites)
    scaling_factor = latents.scaling_factor()

    def write(folder: Path, denoiser: Denoiser, unet_steps: int) -> None:
        export_model(
            folder,
            vae,
            denoiser.unet,
            denoiser.text,
            SCHEDULER_CONFIG,
            scaling_factor=scaling_factor,
            trained={"vae": vae_steps, "unet": unet_steps},
        )

    run = UNetRun(options.work, options.out, options.seed, options.steps, options.warm, stop_at)
    train_unet(run, latents, write)


if __name__ == "__main__":
    sys.exit(main())
