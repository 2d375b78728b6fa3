"""Plain generation beside diffusers' pipeline: python benchmarks/generate.py [--model FOLDER] [--steps N]"""

from pathlib import Path
from typing import Any

import torch
from common import DTYPES, diffusers_pipeline, finish, flops, in_turn, options, peak, pixels_of

import minip2p

PROMPT = "a cat on the beach"


def compared(folder: Path, steps: int, rounds: int, dtype: torch.dtype) -> tuple[float, float]:
    """How many times as fast as diffusers, and the fraction of the matrix peak that a call of our UNet reaches."""
    model, pipeline = minip2p.load(folder, dtype=dtype), diffusers_pipeline(folder, dtype)
    side = pixels_of(model) // 8
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))

    def ours(steps: int) -> None:
        _ = model.generate(PROMPT, latents=noise, steps=steps, guidance_scale=7.5).image

    def theirs(steps: int) -> None:
        pipeline(PROMPT, latents=noise.to(dtype), num_inference_steps=steps, guidance_scale=7.5)

    ours(1)
    theirs(1)
    took = in_turn(rounds, ours=lambda: ours(steps), theirs=lambda: theirs(steps))
    x, words = noise.to(dtype).expand(2, -1, -1, -1), model.text(["", PROMPT])
    call = in_turn(3, once=lambda: model.unet(x, 500, words))["once"]
    ratio, fraction = took["theirs"] / took["ours"], flops(model, 2, side) / 1e12 / call / peak(dtype)
    print(f"{dtype}: diffusers {took['theirs']:.2f} s, minip2p {took['ours']:.2f} s: {ratio:.2f} times as fast")
    print(f"{dtype}: a call of the UNet on two rows {call:.2f} s, {fraction:.0%} of the matrix peak", flush=True)
    return ratio, fraction


@torch.no_grad()
def measured(folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    found = {name: compared(folder, steps, rounds, dtype) for name, dtype in DTYPES.items()}
    figures: dict[str, Any] = {f"gen_{name}": ratio for name, (ratio, _) in found.items()}
    return figures | {"gemm_fraction": {name: fraction for name, (_, fraction) in found.items()}}


def main() -> None:
    given = options("Plain generation beside diffusers' pipeline", steps=4).parse_args()
    finish(measured(given.model, given.steps, given.rounds))


if __name__ == "__main__":
    main()
