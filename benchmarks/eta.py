"""How much noise virtual inversion should replace at each step: python benchmarks/eta.py [--count N] [--model FOLDER]

The last 42 cases of the editing benchmark, edited with several η: success, background and structure, with a local blend
and without. The default η of `virtual` was chosen by it. The last line is JSON.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common import positive_int, print_figures
from tqdm import tqdm

import minip2p
from minip2p.errors import run_guarded
from minip2p.evaluation.edit_benchmark import METHODS, Method, Networks, edit_case, measure_edit, training_size
from minip2p.evaluation.pie_bench import Case, read_cases
from minip2p.io.files import shipped_weights
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import mean
from minip2p.pipeline import Pipeline
from minip2p.tiny.judge import Judge

ETAS = (0.0, 0.1, 0.2, 0.35, 0.5, 1.0)


def measure(pipe: Pipeline, networks: Networks, cases: Sequence[Case], method: Method, steps: int) -> dict[str, float]:
    """The means of a method's edits: success in %, PSNR of the background in dB, structure × 10³."""
    figures = []
    for case in tqdm(cases, leave=False):
        photo = fit_image(read_image(case.picture), training_size(pipe), "stretch")
        figures.append(measure_edit(case, photo, edit_case(pipe, case, method, photo, steps), networks))
    scales = {"success": 100, "psnr": 1, "structure": 1000}
    return {name: scale * mean(row.get(name) for row in figures) for name, scale in scales.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How much noise virtual inversion should replace at each step")
    parser.add_argument("--model", type=Path, default=shipped_weights("tiny"), help="the folder of a model")
    parser.add_argument("--count", type=positive_int, default=42, help="the last N cases (default 42)")
    args = parser.parse_args(arguments)
    pipe, networks, cases = minip2p.load(args.model), Networks(Judge.load()), read_cases(None)[-args.count :]
    steps = pipe.scheduler.few_steps
    names = ("virtual", "virtual+mask") if pipe.scheduler.fresh_noise is None else ("fast", "fast+mask")
    table: dict[str, dict[str, float]] = {}
    print("| method | η | success % | PSNR | structure × 10³ |\n|---|---|---|---|---|")
    for name in names:
        method = METHODS[name]
        assert method is not None
        for eta in ETAS:
            row = measure(pipe, networks, cases, replace(method, invert={"eta": eta}), steps)
            table[f"{name}, η {eta:g}"] = row
            print(
                f"| {name} | {eta:g} | {row['success']:.1f} | {row['psnr']:.1f} | {row['structure']:.1f} |", flush=True
            )
    print_figures({"cases": len(cases), "steps": steps, **table})


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
