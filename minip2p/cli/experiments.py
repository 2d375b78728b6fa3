"""The commands of `minip2p` that measure: tables, charts and sheets of many edits. As those of `commands.py` they print
the names of the files that they wrote and raise ValueError or OSError with one clear line."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minip2p.checkpoints.load import load
from minip2p.evaluation import edit_benchmark, tables
from minip2p.evaluation.pie_bench import read_cases
from minip2p.evaluation.workers import WorkerPool
from minip2p.io import png
from minip2p.io.files import write_text
from minip2p.io.tables import to_csv
from minip2p.metrics.clip_score import ClipScore
from minip2p.pipeline import Pipeline
from minip2p.sampling.progress import Progress
from minip2p.sweeps import sweep as sweeping
from minip2p.sweeps.grid import Grid
from minip2p.tiny.judge import Judge

SHEET = 7  # cases that a benchmark's sheet shows: of those that ship one of each kind


def load_model(args: Namespace) -> Pipeline:
    """The model that the options ask for."""
    model = load(args.model, dtype=getattr(torch, args.dtype), device=args.device, vae=args.vae, config=args.config)
    for given in args.lora:
        file, scale = parse_lora(given)
        model = model.merged(file, scale)
    return model


def parse_lora(given: str) -> tuple[str, float]:
    """FILE, or FILE:SCALE. Raises ValueError for a scale that is no number."""
    file, colon, scale = given.rpartition(":")
    if not colon or given.endswith(".safetensors"):
        return given, 1.0
    try:
        return file, float(scale)
    except ValueError:
        raise ValueError(f"--lora {given}: what follows the colon is the scale, a number") from None


def sweep(args: Namespace) -> None:
    """The pictures, the table, and for each pair of axes a contact sheet and a chart."""
    check_extras("a sweep")
    from minip2p.sweeps import charts

    grid, model, folder = Grid.read(Path(args.grid)), load_model(args), Path(args.out)
    try:
        work = sweeping.plan_jobs(model, grid)
    except ValueError as error:
        raise ValueError(f"{args.grid}: {error}") from None
    pictures = [folder / name for unit in work for name in sweeping.picture_names(unit)]
    parts = [sweeping.rows_file(folder, unit) for unit in work]
    png.check_writable([folder / "grid.json", *charts.results(folder, grid), *parts, *pictures])
    score, scored_by = make_scorer(args)
    print(sweeping.describe(work), flush=True)
    before = model.rows
    rows = sweeping.sweep(model, grid, folder, score=score, scored_by=scored_by, progress=rows_progress)
    print(f"{model.rows - before:,} rows of the UNet were run")
    print(*charts.write_results(folder, grid, rows), sep="\n")


def bench_edits(args: Namespace) -> None:
    """The edited pictures, a sheet of the first, a table of all figures and one of their means, which is printed; last
    one line of JSON."""
    check_extras("a benchmark")

    methods = list(edit_benchmark.METHODS) if args.methods == "all" else args.methods.split(",")
    if unknown := [name for name in methods if name not in edit_benchmark.METHODS]:
        raise ValueError(f"the methods are {', '.join(edit_benchmark.METHODS)}, or all, and not {unknown[0]!r}")
    cases = read_cases(None if args.cases is None else Path(args.cases))
    if args.count is not None and not 1 <= args.count <= len(cases):
        raise ValueError(f"--count must lie between 1 and {len(cases)}, and is {args.count}")
    cases, model, folder = cases[: args.count], load_model(args), Path(args.out)
    model.scheduler.timesteps(args.steps)
    results = [folder / "table.csv", folder / "table.md", folder / "sheet.png"]
    png.check_writable(
        [folder / "bench.json", *results, *(edit_benchmark.row_file(folder, cases[0], name) for name in methods)]
    )
    judge = Judge.load() if args.model is None and args.cases is None else None
    clip = None if args.clip is None else ClipScore(args.clip)
    alone = judge is None or clip is not None or args.dtype != "float32" or args.device != "cpu"
    rows = edit_benchmark.run_benchmark(
        model,
        cases,
        methods,
        folder,
        steps=args.steps,
        judge=judge,
        clip=clip,
        crew=None if alone else partial(WorkerPool, None, args.steps),
    )
    made = tables.summary(rows, methods)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_text(results[0], to_csv([{key: row.get(key) for key in columns} for row in rows]))
    write_text(results[1], tables.table(made))
    png.write_pngs([(results[2], tables.sheet(folder, cases[:SHEET], methods), "photographs, edited")])
    print(tables.table(made), *results, tables.as_json(made), sep="\n")


def check_extras(what: str) -> None:
    """Raises ValueError where what a command needs besides the core is not installed."""
    try:
        import skimage.metrics  # noqa: F401, read when the first figures are made

        from minip2p.sweeps import charts  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{what} needs {error.name}: pip install 'minip2p[sweep]'") from None


def make_scorer(args: Namespace) -> tuple[sweeping.Score | None, str | None]:
    """What says whether an edit has come, and its name: a CLIP that is given; for the model that ships, its judge."""
    if args.clip is not None:
        clip = ClipScore(args.clip)
        return clip.score, clip.name
    return (Judge.load().score, "judge") if args.model is None else (None, None)


def rows_progress(total: int, done: Callable[[], int]) -> Progress:
    """A progress bar in rows of the UNet, which take the same time each, and most of it."""
    shown = tqdm(total=total, disable=None, leave=False, unit="row")

    def steps(given: Iterable[Any]) -> Iterator[Any]:
        for step in given:
            yield step
            shown.update(done() - shown.n)

    return steps
