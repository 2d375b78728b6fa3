"""A contact sheet of 60 prompts that nobody chose, each at seed 0: python -m minip2p.evaluation.tiny_sheet

Two prompts for each of the 30 objects; places and colours go round in the order of their lists.
"""

import argparse
import sys
from pathlib import Path

from minip2p.errors import run_guarded
from minip2p.evaluation.workers import CaseResult, WorkerPool
from minip2p.io.viz import grid
from minip2p.pipeline import Pipeline
from minip2p.sched import DDIMScheduler
from minip2p.tiny.judge import Judge
from minip2p.tiny.scenes import ANIMALS, BACKGROUNDS, COLOURS, THINGS

# The place of each background, with the phrase of `PLACE_PHRASES` that is the usual one.
PLACES = (
    "on the grass",
    "on the beach",
    "in the snow",
    "in the desert",
    "at night",
    "on the street",
    "in the meadow",
    "on the sea",
)


def sheet_prompts() -> list[str]:
    """The prompts: "a cat on the grass", "a cat in the desert", "a dog on the beach", …"""
    prompts, places = [], len(BACKGROUNDS)
    for i, name in enumerate(ANIMALS):
        prompts += [f"{name} {PLACES[place % places]}" for place in (i, i + 3)]
    for i, name in enumerate(THINGS):
        prompts += [
            f"{COLOURS[colour % len(COLOURS)]} {name} {PLACES[place % places]}"
            for colour, place in ((i, i + 5), (i + 3, i + 9))
        ]
    return [("an " if prompt[0] in "aeiou" else "a ") + prompt for prompt in prompts]


def draw(pipe: Pipeline, judge: Judge, number: int, prompt: str, steps: int) -> CaseResult:
    """The picture of a prompt at seed 0."""
    return {}, [pipe.generate(prompt, seed=0, steps=steps).image]


def write_sheet(options: argparse.Namespace) -> None:
    prompts = sheet_prompts()
    with WorkerPool(options.model, options.steps) as pool:
        pictures = [images[0] for _, images in pool.run_all(draw, prompts)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    grid(list(zip(pictures, prompts, strict=True)), columns=10, min_side=128).save(options.out)
    print(options.out)


def main() -> int:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m minip2p.evaluation.tiny_sheet", description=description)
    parser.add_argument("--model", type=Path, help="the folder of a model (default: the model that ships)")
    parser.add_argument(
        "--steps", type=int, default=DDIMScheduler.default_steps, help="steps of each picture (default 50)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out/sheet.png"), help="the file (default out/sheet.png)"
    )
    options = parser.parse_args()
    return run_guarded(lambda: write_sheet(options))


if __name__ == "__main__":
    sys.exit(main())
