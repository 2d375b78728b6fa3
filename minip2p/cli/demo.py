"""What the model that ships can do, in five pictures: python -m minip2p.cli.demo

Each is written into the output folder, with one line that says what to look at; demo.png has them all on one sheet.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minip2p.checkpoints.load import load
from minip2p.cli import commands
from minip2p.errors import run_guarded
from minip2p.io import png, viz
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.sampling.trajectory import Trajectory

STEPS = 50


STRENGTHS = (0.0, 1.0, 2.0)


@dataclass(frozen=True)
class Example:
    """One edit and what to look at."""

    name: str
    source: str
    target: str
    seed: int
    look: str


Row = tuple[Example, Trajectory, list[viz.Panel]]  # what is shown, the run that it shows, and its panels


EDITS = (
    Example(
        "1-swap",
        "a pig on the grass",
        "a sheep on the grass",
        1,
        "a word swap: a sheep in the pig's place and pose; without P2P, pose and clouds are others",
    ),
    Example(
        "2-phrase",
        "a red car on the street",
        "a red car on the street in the fog",
        5,
        "an added phrase: fog comes in; the car stays where it is and of the same make",
    ),
    Example(
        "3-style",
        "a photo of a tiger in the meadow",
        "a watercolor of a tiger in the meadow",
        3,
        "a style edit: painted now; the same tiger in the same place",
    ),
)


WEIGHTS = Example(
    "4-reweight",
    "a red car on the street in the fog",
    "fog",
    5,
    "a re-weighting: the same picture with hardly any fog, with fog as it was, with more of it",
)


MAPS = Example(
    "5-maps",
    "a tiger in the meadow",
    "tiger meadow",
    3,
    "the heat map of each word: 'tiger' is bright on the tiger, 'meadow' around it",
)


def edit_rows(model: Pipeline) -> Iterator[Row]:
    """Each edit in a row: source, target without Prompt-to-Prompt, target with it."""
    for show in EDITS:
        edited = model.edit(show.source, show.target, seed=show.seed, steps=STEPS)
        plain = model.generate(show.target, seed=show.seed, steps=STEPS)
        yield show, edited, commands.edit_row(plain, edited)


def reweight_row(model: Pipeline) -> Row:
    """One picture with a word at several strengths, 1 as it is."""
    run = model.generate(WEIGHTS.source, seed=WEIGHTS.seed, steps=STEPS)
    runs = [run if c == 1 else model.edit(run, run.prompt, reweight={WEIGHTS.target: c}) for c in STRENGTHS]
    captions = [f"{run.prompt}: {WEIGHTS.target} x {c:g}" for c in STRENGTHS]
    return WEIGHTS, run, [(one.image, caption) for one, caption in zip(runs, captions, strict=True)]


def maps_row(model: Pipeline) -> Row:
    """A picture and the heat maps of all its words, those first that the sheet shows."""
    run = model.generate(MAPS.source, seed=MAPS.seed, steps=STEPS)
    first = MAPS.target.split()
    return MAPS, run, commands.maps_row(run, [*first, *(word for word in MAPS.source.split() if word not in first)])


def all_rows(model: Pipeline) -> Iterator[Row]:
    yield from edit_rows(model)
    yield reweight_row(model)
    yield maps_row(model)


def write_demo(folder: Path) -> None:
    """Writes the pictures. Raises OSError, before the first of them is made, where the folder cannot be written."""
    paths = {show: folder / f"{show.name}.png" for show in (*EDITS, WEIGHTS, MAPS)}
    sheet = folder / "demo.png"
    png.check_writable([*paths.values(), sheet])
    start, model, panels, texts = time.perf_counter(), load(), [], []
    for show, run, row in all_rows(model):
        panels += row[:3]
        texts.append(metadata.parameters(run))
        png.write_pngs([(paths[show], viz.grid(row, columns=len(row)), texts[-1])])
        print(f"{paths[show]}  {show.look}", flush=True)
    png.write_pngs([(sheet, viz.grid(panels, columns=3), "\n\n".join(texts))])
    print(f"{sheet}  all of them\nthe demo's own work took {time.perf_counter() - start:.0f} s")


def main() -> int:
    options = argparse.ArgumentParser(
        "python -m minip2p.cli.demo", description=__doc__.split("\n")[0] if __doc__ else None
    )
    options.add_argument("-o", "--out", type=Path, default=Path("out"), metavar="FOLDER", help="(default: out)")
    folder = options.parse_args().out
    return run_guarded(lambda: write_demo(folder))


if __name__ == "__main__":
    sys.exit(main())
