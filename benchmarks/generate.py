"""Plain generation, compared with diffusers' pipeline: python benchmarks/generate.py [--model FOLDER] [--steps N]"""

from pathlib import Path
from typing import Any

import torch
from common import (
    DTYPES,
    diffusers_pipeline,
    make_parser,
    matmul_peak,
    print_figures,
    time_in_turn,
    training_side,
    unet_tflop,
)

import minip2p

PROMPT = "a cat on the beach"


def compare(folder: Path, steps: int, rounds: int, dtype: torch.dtype) -> tuple[float, float]:
    """How many times as fast as diffusers minip2p is, and the fraction of the matrix peak that its UNet reaches."""
    pipe, diffusers_pipe = minip2p.load(folder, dtype=dtype), diffusers_pipeline(folder, dtype)
    side = training_side(pipe) // pipe.vae.stride
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))

    def run_minip2p(steps: int) -> None:
        _ = pipe.generate(PROMPT, latents=noise, steps=steps, guidance_scale=7.5).image

    def run_diffusers(steps: int) -> None:
        diffusers_pipe(PROMPT, latents=noise.to(dtype), num_inference_steps=steps, guidance_scale=7.5)

    run_minip2p(1)
    run_diffusers(1)
    seconds = time_in_turn(rounds, minip2p=lambda: run_minip2p(steps), diffusers=lambda: run_diffusers(steps))
    x, context = noise.to(dtype).expand(2, -1, -1, -1), pipe.text(["", PROMPT]).tokens
    call = time_in_turn(3, unet=lambda: pipe.unet(x, 500, context))["unet"]
    ratio = seconds["diffusers"] / seconds["minip2p"]
    fraction = unet_tflop(pipe, 2, side) / call / matmul_peak(dtype)
    print(
        f"{dtype}: diffusers {seconds['diffusers']:.2f} s, minip2p {seconds['minip2p']:.2f} s: "
        f"{ratio:.2f} times as fast"
    )
    print(f"{dtype}: a call of the UNet on two rows {call:.2f} s, {fraction:.0%} of the matrix peak", flush=True)
    return ratio, fraction


@torch.no_grad()
def measure(folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    """The ratio and the fraction of the peak in each dtype."""
    results = {name: compare(folder, steps, rounds, dtype) for name, dtype in DTYPES.items()}
    figures: dict[str, Any] = {f"gen_{name}": ratio for name, (ratio, _) in results.items()}
    return figures | {"gemm_fraction": {name: fraction for name, (_, fraction) in results.items()}}


def main() -> None:
    args = make_parser("Plain generation, compared with diffusers' pipeline", steps=4).parse_args()
    print_figures(measure(args.model, args.steps, args.rounds))


if __name__ == "__main__":
    main()
