"""The command `minip2p demo`: five pictures that show what the model that ships can do.

It writes each picture into the output folder and prints one line that says what to look at. demo.png shows all of them
on one sheet.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minip2p.cli.commands import check_outputs, edit_row, finished_source, maps_row, refuse_file_name
from minip2p.io import png, viz
from minip2p.pipeline import Pipeline, load
from minip2p.sampling import metadata
from minip2p.sampling.trajectory import Trajectory

STEPS = 50
STRENGTHS = (0.0, 1.0, 2.0)  # of the re-weighted word
SHEET_COLUMNS = 3


@dataclass(frozen=True)
class Example:
    """A picture of the demo: how it is made, and what to look at.

    name: of its file. target: the target prompt, or the words to re-weight or to map.
    """

    name: str
    source: str
    target: str
    seed: int
    caption: str


Row = tuple[Example, Trajectory, list[viz.Panel]]  # an example, the run whose settings its PNG has, and its panels

EDITS = (
    Example(
        "1-swap",
        "a pig on the grass",
        "a sheep on the grass",
        0,
        "a word swap: a sheep of the pig's size in its place; without P2P, it is larger and stands higher",
    ),
    Example(
        "2-phrase",
        "a red car on the street",
        "a red car on the street in the fog",
        1,
        "an added phrase: fog appears; the same car stays in its place",
    ),
    Example(
        "3-style",
        "a photo of a tiger in the meadow",
        "a watercolor of a tiger in the meadow",
        2,
        "a style edit: painted now; the same tiger in the same place",
    ),
)
REWEIGHT = Example(
    "4-reweight",
    "a red car on the street in the fog",
    "fog",
    3,
    "a re-weighting: the same picture with hardly any fog, with the fog as it was, and with more of it",
)
MAPS = Example(
    "5-maps",
    "a tiger in the meadow",
    "tiger meadow",
    4,
    "the heat map of each word: 'tiger' is bright on the tiger, 'meadow' around it",
)


def demo(args: Namespace) -> Iterator[None]:
    """Writes the pictures. Raises OSError or ValueError if one cannot be written, before the first is made."""
    folder = Path(args.out)
    paths = {example.name: folder / f"{example.name}.png" for example in (*EDITS, REWEIGHT, MAPS)}
    sheet = folder / "demo.png"
    refuse_file_name(folder)
    check_outputs(args, [*paths.values(), sheet])
    yield
    start, pipe = time.perf_counter(), load()
    panels: list[viz.Panel] = []
    texts: list[str] = []
    for example, run, row in all_rows(pipe):
        path, text = paths[example.name], metadata.parameters(run)
        panels += row[:SHEET_COLUMNS]
        texts.append(text)
        png.write_pngs([(path, viz.grid(row, columns=len(row)), text)])
        print(f"{path}  {example.caption}", flush=True)
    png.write_pngs([(sheet, viz.grid(panels, columns=SHEET_COLUMNS), "\n\n".join(texts))])
    print(f"{sheet}  all of them\nthe demo's own work took {time.perf_counter() - start:.0f} s")


def all_rows(pipe: Pipeline) -> Iterator[Row]:
    yield from edit_examples(pipe)
    yield reweight_example(pipe)
    yield maps_example(pipe)


def edit_examples(pipe: Pipeline) -> Iterator[Row]:
    """For each edit a row: the source, the target without Prompt-to-Prompt, the target with it."""
    for example in EDITS:
        edited = pipe.edit(example.source, example.target, seed=example.seed, steps=STEPS)
        plain = pipe.generate(example.target, seed=example.seed, steps=STEPS)
        yield example, edited, edit_row(finished_source(edited), plain, edited)


def reweight_example(pipe: Pipeline) -> Row:
    """The same picture with a word at several strengths; strength 1 is the picture itself."""
    word = REWEIGHT.target
    run = pipe.generate(REWEIGHT.source, seed=REWEIGHT.seed, steps=STEPS)
    panels = []
    for strength in STRENGTHS:
        edited = run if strength == 1 else pipe.edit(run, run.prompt, reweight={word: strength})
        panels.append((edited.image, f"{run.prompt}: {word} x {strength:g}"))
    return REWEIGHT, run, panels


def maps_example(pipe: Pipeline) -> Row:
    """A picture and the heat maps of all its words; the words that the sheet shows come first."""
    run = pipe.generate(MAPS.source, seed=MAPS.seed, steps=STEPS)
    first = MAPS.target.split()
    return MAPS, run, maps_row(run, [*first, *(word for word in MAPS.source.split() if word not in first)])
