"""What the approximations of guidance cost and save: edits of photographs, compared with the same edits without them:

    python benchmarks/approximations.py [--count N] [-o FOLDER]

Each photograph of `weights/bench` is inverted once by direct inversion for each number of steps, and edited in each way
of `WAYS`. PSNR is to the exact edit in 50 steps. Success is the judge's. Rows and seconds are of the edit
alone: the source's and the target's rows of the UNet, and the processor's time. Finished cases are not run again. The
last line is JSON.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import positive_int, print_figures, read_figures
from torch import Tensor
from tqdm import tqdm

import minip2p
from minip2p.checkpoints.components import RowCounter
from minip2p.errors import run_guarded
from minip2p.evaluation.edit_benchmark import TINY_SETTINGS, Networks, measure_edit, training_size
from minip2p.evaluation.pie_bench import Case, read_cases
from minip2p.io.files import claim_results_folder, write_text
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import interval, mean, psnr
from minip2p.pipeline import Pipeline
from minip2p.tiny.judge import Judge

EXACT = "exact"
STEPS = 50  # of the exact edit
# What a way differs in from the exact edit: its steps, and the fields of its `Conditioning`.
WAYS: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    EXACT: (STEPS, {}),
    "guidance_interval=(0, .6)": (STEPS, {"guidance_interval": (0.0, 0.6)}),
    "uncond_every=2": (STEPS, {"uncond_every": 2}),
    "both": (STEPS, {"guidance_interval": (0.0, 0.6), "uncond_every": 2}),
    "steps=20": (20, {}),
}
FIGURES = {  # title, factor, digits
    "psnr": ("PSNR to the exact edit", 1, 1),
    "success": ("success %", 100, 1),
    "background": ("PSNR of the background", 1, 1),
    "structure": ("structure × 10³", 1e3, 1),
    "rows": ("rows", 1, 0),
    "seconds": ("seconds", 1, 2),
}


def run_case(pipe: Pipeline, judge: Judge, case: Case) -> dict[str, dict[str, float | None]]:
    """The figures of each way of a case; without PSNR to itself for the exact edit, and to a background that is not."""
    before = fit_image(read_image(case.picture), training_size(pipe), "stretch")
    runs = {steps: pipe.invert(before, case.source, steps=steps) for steps, _ in WAYS.values()}
    exact, figures = torch.empty(0), {}
    for name, (steps, options) in WAYS.items():
        counter, run = RowCounter(), runs[steps]
        run = replace(run, conditioning=replace(run.conditioning, **options))
        began = time.process_time()
        edited = pipe.counting(counter).edit(run, case.target, **TINY_SETTINGS)
        seconds, after = time.process_time() - began, edited.picture
        exact = after if name == EXACT else exact
        figures[name] = figures_of(case, judge, before, exact, after, is_exact=name == EXACT) | {
            "rows": float(counter.rows),
            "seconds": seconds,
        }
    return figures


def figures_of(
    case: Case, judge: Judge, before: Tensor, exact: Tensor, after: Tensor, *, is_exact: bool
) -> dict[str, float | None]:
    """The figures of an edited picture but its cost. before, exact, after: 3 H W in [-1, 1]."""
    measured = measure_edit(case, before, after, Networks(judge))
    return {
        "psnr": None if is_exact else psnr(after, exact),
        "success": measured["success"],
        "background": None if case.mask((before.shape[1], before.shape[2])).all() else measured["psnr"],
        "structure": measured["structure"],
    }


def table(rows: Sequence[Mapping[str, Mapping[str, float | None]]]) -> str:
    """The means over the cases with their intervals, a line for each way, in Markdown."""
    lines = [f"| way | {' | '.join(title for title, _, _ in FIGURES.values())} |", f"|{'---|' * (1 + len(FIGURES))}"]
    for name in WAYS:
        cells = []
        for field, (_, factor, digits) in FIGURES.items():
            value, half_width = (factor * number for number in interval(row[name][field] for row in rows))
            cells.append("–" if math.isnan(value) else f"{value:.{digits}f} ± {half_width:.{digits}f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the approximations of guidance cost and save in edits")
    parser.add_argument(
        "--count", type=positive_int, default=42, help="the first N cases of weights/bench (default 42)"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("out/approximations"), help="(default %(default)s)")
    args = parser.parse_args(arguments)
    pipe, judge, cases = minip2p.load().with_progress(iter), Judge.load(), read_cases(None)[: args.count]
    settings = {"model": pipe.components.fingerprint, "ways": repr(WAYS)}
    claim_results_folder(args.out / "approximations.json", args.out / "cases", settings, "another model's cases")
    rows = []
    for number, case in enumerate(tqdm(cases, disable=None, leave=False, unit="case")):
        file = args.out / "cases" / f"{number:03}.json"
        if not file.exists():
            write_text(file, json.dumps(run_case(pipe, judge, case)) + "\n")
        rows.append(read_figures(file, WAYS))
    print(table(rows))
    figures = {
        f"{name}, {field}": mean(factor * value for row in rows if (value := row[name][field]) is not None)
        for name in WAYS
        for field, (_, factor, _) in FIGURES.items()
    }
    print_figures({"cases": len(rows), **{name: None if math.isnan(x) else x for name, x in figures.items()}})


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
