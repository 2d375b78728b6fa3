"""How well each inversion reconstructs the photograph that it inverts:

    python benchmarks/reconstruct.py [--count N] [--steps N] [-o FOLDER]

Each photograph is sampled again from its x_T, at the model's own guidance and at 7.5, with nothing but what the method
leaves: its embeddings, its noise, its negative prompt; for direct inversion its offsets, which our runs do not need,
since they store the latents themselves. Finished photographs are not run again. The last line is JSON.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from common import positive_int, print_figures, read_figures
from torch import Tensor
from tqdm import tqdm

import minip2p
from minip2p.errors import run_guarded
from minip2p.evaluation.edit_benchmark import training_size
from minip2p.evaluation.pie_bench import Case, read_cases
from minip2p.io.files import claim_results_folder, write_text
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import interval, psnr, ssim, structure
from minip2p.pipeline import Pipeline
from minip2p.sampling.guidance import guided_noise
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.tiny.judge import Judge

METHODS = ("vae", "ddim", "edit-friendly", "negative-prompt", "null-text", "direct")
FIGURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "structure": "structure × 10³"}


def sample_again(pipe: Pipeline, run: Trajectory) -> Tensor:
    """The last latents, 1 c h w, sampled from the run's initial noise and its conditioning."""
    start = RunStart(
        run.prompt,
        run.latents[:1],
        run.steps,
        run.guidance_scale,
        run.negative_prompt,
        conditioning=run.conditioning,
    )
    return sample(pipe.components, start).latents[-1:]


def sample_by_offsets(pipe: Pipeline, run: Trajectory) -> Tensor:
    """The last latents, 1 c h w, by the offsets of direct inversion (Ju et al. 2023, algorithm 1). z* is the run:

    o_i = z*_{i+1} − DDIM(z*_i),   z_{i+1} = DDIM(z_i) + o_i
    """
    uncond, cond = pipe.text(run.negative_prompt), pipe.text(run.prompt)
    steps = pipe.scheduler.steps(run.steps)

    def ddim(x: Tensor, i: int) -> Tensor:
        eps = guided_noise(pipe.components, x, steps[i].t, uncond, cond, guidance_scale=run.guidance_scale)
        return pipe.scheduler.step(x, eps, steps[i])

    pivots = run.latents.split(1)
    offsets = [pivots[i + 1] - ddim(pivots[i], i) for i in range(run.steps)]
    x = pivots[0]
    for i, offset in enumerate(offsets):
        x = ddim(x, i) + offset
    return x


def measure_case(
    pipe: Pipeline, judge: Judge, case: Case, guidance_scale: float, steps: int
) -> dict[str, dict[str, float]]:
    """The figures of one photograph by each method, against the photograph itself."""
    photo = fit_image(read_image(case.picture), training_size(pipe), "stretch")
    results = {}
    for method in METHODS:
        if method == "vae":
            latents = pipe.components.encode(photo[None])
        else:
            run = pipe.invert(photo, case.source, method=method, steps=steps, guidance_scale=guidance_scale)
            latents = sample_by_offsets(pipe, run) if method == "direct" else sample_again(pipe, run)
        picture = pipe.components.decode(latents)[0]
        distance = structure(judge.features(photo), judge.features(picture))
        results[method] = {"psnr": psnr(photo, picture), "ssim": ssim(photo, picture), "structure": distance}
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How well each inversion reconstructs the photograph that it inverts")
    parser.add_argument("--count", type=positive_int, default=100, help="the first N cases that ship (default 100)")
    parser.add_argument("--steps", type=positive_int, default=50, help="(default 50)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/reconstruct"), help="(default out/reconstruct)")
    args = parser.parse_args(arguments)
    pipe, judge = minip2p.load(), Judge.load()
    cases, figures = read_cases()[: args.count], {}
    claim_results_folder(
        args.out / "reconstruct.json",
        args.out / f"{args.steps}-{pipe.default_guidance:g}",
        {"model": pipe.components.fingerprint, "methods": METHODS},
        "another model's photographs",
    )
    for guidance_scale in (pipe.default_guidance, 7.5):
        rows = []
        for case in tqdm(cases, disable=None, leave=False, unit="picture"):
            file = args.out / f"{args.steps}-{guidance_scale:g}" / f"{case.name}.json"
            if not file.exists():
                results = measure_case(pipe, judge, case, guidance_scale, args.steps)
                write_text(file, json.dumps(results) + "\n")
            rows.append(read_figures(file, METHODS))
        print(f"\n| w = {guidance_scale:g} | {' | '.join(FIGURES.values())} |\n|---|---|---|---|")
        for method in METHODS:
            cells = []
            for name in FIGURES:
                scale = 1e3 if name == "structure" else 1
                mean, half = interval(scale * row[method][name] for row in rows)
                cells.append(f"{mean:.2f} ± {half:.2f}")
                figures[f"{method}_{name}_{guidance_scale:g}"] = mean / scale if math.isfinite(mean) else None
            print(f"| {method} | {' | '.join(cells)} |")
    print_figures({"pictures": len(cases), **figures})


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
