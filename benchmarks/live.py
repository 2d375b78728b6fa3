"""How many edits a second follow a slider: python benchmarks/live.py [--count N]

A photograph is recorded once by `pipe.live` with the model of few steps that ships; then its edits differ in a word
and a weight, each in four steps, with its decoded picture. The last line is JSON.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from common import positive_int, print_figures

import minip2p
from minip2p.checkpoints.components import RowCounter
from minip2p.errors import run_guarded
from minip2p.evaluation.edit_benchmark import FAST_EDIT

PHOTOGRAPH = Path(__file__).parents[1] / "tests/data/renders/00.png"
COLOURS = ("green", "yellow", "purple", "pink", "orange")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How many edits a second follow a slider")
    parser.add_argument("--count", type=positive_int, default=100, help="edits (default 100)")
    args = parser.parse_args(arguments)
    counter = RowCounter()
    pipe = minip2p.load("tiny-fast").counting(counter)
    live = pipe.live(PHOTOGRAPH, "on the street, a blue umbrella and a red lamp")

    def edit(number: int) -> None:
        colour = COLOURS[number % len(COLOURS)]
        weights = {colour: 1 + number / args.count}
        _ = live.edit(f"on the street, a {colour} umbrella and a red lamp", reweight=weights, **FAST_EDIT).picture

    edit(0)  # the first call is slower
    rows, began = counter.rows, time.perf_counter()
    for number in range(args.count):
        edit(number)
    figures = {"edits a second": args.count / (time.perf_counter() - began)}
    figures["rows an edit"] = (counter.rows - rows) / args.count
    print("; ".join(f"{name}: {value:.2f}" for name, value in figures.items()))
    print_figures(figures)


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
