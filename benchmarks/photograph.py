"""What an edit of one photograph costs by each method, and what it is worth:

    python benchmarks/photograph.py [--methods NAME:STEPS …] [--model FOLDER] [--measured N] [--bench FOLDER … -o FILE]

It edits the first photograph of the benchmark, one method after the other, and prints rows of the UNet and seconds,
with encoding and decoding. The methods are those of `minip2p bench-edits`; `fast` takes the model of few steps that
ships, and `instruct` is the model that follows instructions. --measured: runs only so many steps of each; then the rows
of all steps are counted on a model that ships, at the same guidance, and the seconds are predicted from them. --bench:
folders of `minip2p bench-edits -o`; success and background of the same methods and steps are drawn against the seconds
of this run, with the front marked. The last line is JSON.
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from common import print_figures, time_in_turn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import minip2p
from minip2p.checkpoints.components import RowCounter
from minip2p.errors import run_guarded
from minip2p.evaluation.edit_benchmark import METHODS, edit_case, training_size
from minip2p.evaluation.instruct_benchmark import case_instruction
from minip2p.evaluation.pie_bench import Case, read_cases
from minip2p.io.files import atomic_write, shipped_weights
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import mean
from minip2p.pipeline import Pipeline

FAST = ("fast", "fast+mask")  # methods of the model of few steps
INSTRUCT = "instruct"
SHIPPED = dict.fromkeys(FAST, "tiny-fast") | {INSTRUCT: "tiny-instruct"}  # methods of other models that ship
DEFAULT = (
    "ddim:20 negative-prompt:20 proximal:20 null-text:20 edit-friendly:20 direct:20 direct+mask:20 "
    "direct+mask+polish:20 direct+masactrl:20 direct+plug-and-play-attention:20 "
    "virtual:15 virtual+mask:15 fast:4 fast+mask:4"
).split()


@dataclass(frozen=True)
class Cost:
    """What an edit costs. name: of the method, and its steps."""

    name: str
    steps: int
    rows: int
    seconds: float

    @property
    def label(self) -> str:
        return f"{self.name}, {self.steps} steps"


@dataclass(frozen=True)
class Quality:
    """The means of a method's edits in a benchmark. success: a share. psnr: of the background, in dB."""

    success: float
    psnr: float


def parse_method(text: str) -> tuple[str, int]:
    """'direct:20' -> ('direct', 20)."""
    name, _, steps = text.rpartition(":")
    if (METHODS.get(name) is None and name != INSTRUCT) or not steps.isdecimal() or int(steps) < 1:
        names = ", ".join([*(name for name, method in METHODS.items() if method is not None), INSTRUCT])
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:STEPS with one of the methods {names}")
    return name, int(steps)


@cache
def shipped(name: str) -> Pipeline:
    """A model that ships."""
    return minip2p.load(shipped_weights(name))


def run_edit(pipe: Pipeline, case: Case, name: str, steps: int) -> int:
    """Edits the photograph of a case and returns the rows of the UNet."""
    counter, picture = RowCounter(), fit_image(read_image(case.picture), training_size(pipe), "stretch")
    if name == INSTRUCT:
        pipe.counting(counter).instruct(picture, case_instruction(case), steps=steps).picture  # noqa: B018, it decodes
    else:
        edit_case(pipe.counting(counter), case, METHODS[name], picture, steps)
    return counter.rows


def vae_seconds(pipe: Pipeline, case: Case) -> float:
    """What encoding and decoding the photograph takes."""
    picture, began = fit_image(read_image(case.picture), training_size(pipe), "stretch"), time.perf_counter()
    edit_case(pipe, case, None, picture, 1)
    return time.perf_counter() - began


def measure(pipe: Pipeline, case: Case, name: str, steps: int, measured: int | None, rounds: int) -> Cost:
    """The cost of a method's edit; with `measured`, predicted from so many steps by the rows of all steps."""
    if name in SHIPPED:
        pipe = shipped(SHIPPED[name])
    rows: list[int] = []
    run_steps = steps if measured is None else measured
    seconds = time_in_turn(rounds, edit=lambda: rows.append(run_edit(pipe, case, name, run_steps)))["edit"]
    if measured is None:
        return Cost(name, steps, rows[0], seconds)
    small = shipped(SHIPPED.get(name, "tiny"))
    counted = replace(small, default_guidance=pipe.default_guidance)
    vae, all_rows = vae_seconds(pipe, case), run_edit(counted, case, name, steps)
    return Cost(name, steps, all_rows, vae + (seconds - vae) * all_rows / rows[0])


def read_qualities(folders: list[Path]) -> dict[tuple[str, int], Quality]:
    """The means of each method in folders of results, by its name and steps."""
    qualities = {}
    for folder in folders:
        steps = json.loads((folder / "bench.json").read_text())["steps"]
        with (folder / "table.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for name in {row["method"] for row in rows}:
            of_method = [row for row in rows if row["method"] == name]
            figures = {key: [float(row[key]) for row in of_method if row[key]] for key in ("success", "psnr")}
            qualities[name, steps] = Quality(mean(figures["success"]), mean(figures["psnr"]))
    return qualities


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (seconds, figure) than which no other is both as quick and better, or as good and quicker."""
    return sorted((x, y) for x, y in points if not any((a <= x and b > y) or (a < x and b >= y) for a, b in points))


def draw(costs: list[Cost], qualities: dict[tuple[str, int], Quality], path: Path) -> None:
    """Draws success and background against seconds, each with its front as a line."""
    costs = [cost for cost in costs if (cost.name, cost.steps) in qualities]
    chart = Figure(figsize=(11, 5.6), layout="constrained")
    plots: list[Axes] = list(chart.subplots(1, 2))
    for plot, key, title in zip(plots, ("success", "psnr"), ("success, %", "PSNR of the background, dB"), strict=True):
        scale = 100 if key == "success" else 1
        points = [(c.seconds, scale * getattr(qualities[c.name, c.steps], key)) for c in costs]
        line = front(points)
        plot.plot(*zip(*line, strict=True), color="tab:blue", zorder=1, label="front: none is quicker and better")
        for number, (cost, point) in enumerate(zip(costs, points, strict=True), 1):
            on_front = point in line
            plot.plot(
                *point,
                "o",
                color="tab:blue" if on_front else "0.6",
                label=f"{number}  {cost.label}" if plot is plots[1] else None,
            )
            plot.annotate(str(number), point, xytext=(5, 5), textcoords="offset points", fontsize=9)
        plot.set_xscale("log")
        plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plot.xaxis.set_major_formatter("{x:g}")
        plot.xaxis.set_minor_formatter(NullFormatter())
        plot.set_xlabel("seconds an edit, less is better  ←")
        plot.set_ylabel(f"{title}, more is better  →")
        plot.grid(alpha=0.3, which="both")
        plot.margins(0.1, 0.12)
    chart.legend(*plots[1].get_legend_handles_labels(), loc="outside right upper", fontsize=8, markerscale=0)
    with atomic_write(path) as partial:
        chart.savefig(partial, format="png", dpi=110, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What an edit of one photograph costs by each method")
    parser.add_argument("--model", type=Path, default=shipped_weights("tiny"), help="the folder of a model")
    parser.add_argument("--methods", type=parse_method, nargs="+", default=list(map(parse_method, DEFAULT)))
    parser.add_argument("--measured", type=int, help="run so many steps, and predict the seconds of all")
    parser.add_argument("--rounds", type=int, default=2, help="the fastest of so many runs counts (default 2)")
    parser.add_argument("--bench", type=Path, nargs="+", default=[], help="folders of minip2p bench-edits")
    parser.add_argument("-o", "--out", type=Path, help="the plot, a PNG")
    args = parser.parse_args(arguments)
    pipe, case = minip2p.load(args.model), read_cases(None)[0]
    run_edit(pipe, case, "virtual", 1)  # first calls are slower
    costs = []
    for name, steps in args.methods:
        costs.append(measure(pipe, case, name, steps, args.measured, args.rounds))
        print(f"{costs[-1].label}: {costs[-1].rows} rows, {costs[-1].seconds:.2f} s", flush=True)
    if args.out is not None:
        draw(costs, read_qualities(args.bench), args.out)
        print(args.out)
    figures: dict[str, Any] = {cost.label: {"rows": cost.rows, "seconds": cost.seconds} for cost in costs}
    print_figures(figures)


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
