"""How well inversions meet the photograph that they invert, when it is made again from their noise:

    python benchmarks/reconstruct.py [--count N] [--steps N] [-o FOLDER]

From x_T at the model's own guidance and at 7.5, with nothing but what a method leaves: its embeddings, its noise, its
negative prompt; of direct inversion its offsets, which its runs do not need, since they keep the latents themselves.
A photograph that is done is not done again. The last line is JSON.
"""

import argparse
import json
import math
from pathlib import Path

from common import finish, kept, some
from torch import Tensor
from tqdm import tqdm

import minip2p
from minip2p.attention.contract import fused
from minip2p.errors import run_guarded
from minip2p.evaluation.pie_bench import Case, read_cases
from minip2p.io.files import claim_results_folder, write_text
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import interval, psnr, ssim, structure
from minip2p.pipeline import Pipeline
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory, sample
from minip2p.tiny.judge import Judge

METHODS = ("vae", "ddim", "edit-friendly", "negative-prompt", "null-text", "direct")
FIGURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "structure": "structure × 10³"}


def made_again(model: Pipeline, run: Trajectory) -> Tensor:
    """The last latents, 1 c h w, from the run's noise and what it carries to its edits."""
    start = RunSettings(
        run.prompt, run.latents[:1], run.steps, run.guidance_scale, run.negative_prompt, way=run.conditioning
    )
    return sample(model, start).latents[-1:]


def by_offsets(model: Pipeline, run: Trajectory) -> Tensor:
    """The last latents, 1 c h w, by direct inversion's offsets (Ju et al. 2023, algorithm 1), where z* is the run's:

    o_i = z*_{i+1} − DDIM(z*_i),   z_{i+1} = DDIM(z_i) + o_i
    """
    empty, words = model.text(run.negative_prompt), model.text(run.prompt)

    def led(x: Tensor, i: int) -> Tensor:
        step = model.scheduler.steps(run.steps)[i]
        return model.scheduler.step(x, model.guided_noise(x, step.t, empty, words, run.guidance_scale, fused), step)

    ideal = run.latents.split(1)
    offsets = [ideal[i + 1] - led(ideal[i], i) for i in range(run.steps)]
    x = ideal[0]
    for i, offset in enumerate(offsets):
        x = led(x, i) + offset
    return x


def measured(model: Pipeline, judge: Judge, case: Case, guidance: float, steps: int) -> dict[str, dict[str, float]]:
    """The figures of one photograph by each method, against the photograph itself."""
    side = model.unet.config.sample_size
    assert isinstance(side, int)
    before = fit_image(read_image(case.picture), (side * model.vae.stride,) * 2, "stretch")
    found = {}
    for method in METHODS:
        if method == "vae":
            last = model.encode(before[None])
        else:
            run = model.invert(before, case.source, method=method, steps=steps, guidance_scale=guidance)
            last = by_offsets(model, run) if method == "direct" else made_again(model, run)
        after = model.decode(last)[0]
        apart = structure(judge.features(before), judge.features(after))
        found[method] = {"psnr": psnr(before, after), "ssim": ssim(before, after), "structure": apart}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="How well inversions meet the photograph that they invert")
    parser.add_argument("--count", type=some, default=100, help="the first N of the pictures that ship (default 100)")
    parser.add_argument("--steps", type=some, default=50, help="(default 50)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/reconstruct"), help="(default out/reconstruct)")
    given = parser.parse_args()
    model, judge = minip2p.load(), Judge.load()
    cases, figures = read_cases()[: given.count], {}
    what = {"model": model.fingerprint, "methods": METHODS}
    claim_results_folder(
        given.out / "reconstruct.json",
        given.out / f"{given.steps}-{model.guidance_scale:g}",
        what,
        "another model's photographs",
    )
    for guidance in (model.guidance_scale, 7.5):
        rows = []
        for case in tqdm(cases, disable=None, leave=False, unit="picture"):
            file = given.out / f"{given.steps}-{guidance:g}" / f"{case.name}.json"
            if not file.exists():
                write_text(file, json.dumps(measured(model, judge, case, guidance, given.steps)) + "\n")
            rows.append(kept(file, METHODS))
        print(f"\n| w = {guidance:g} | {' | '.join(FIGURES.values())} |\n|---|---|---|---|")
        for method in METHODS:
            cells = []
            for name in FIGURES:
                scale = 1e3 if name == "structure" else 1
                mean, half = interval(scale * row[method][name] for row in rows)
                cells.append(f"{mean:.2f} ± {half:.2f}")
                figures[f"{method}_{name}_{guidance:g}"] = mean / scale if math.isfinite(mean) else None
            print(f"| {method} | {' | '.join(cells)} |")
    finish({"pictures": len(cases), **figures})


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
