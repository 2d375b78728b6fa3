"""The commands of `minip2p` that measure: tables, charts and contact sheets of many edits.

They take, yield, print and raise what the commands of `commands.py` do. They are in a module of their own because they
import the benchmark, the judge and a process pool, which the other commands do without.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from minip2p.checkpoints.components import RowCounter
from minip2p.checkpoints.load import is_shipped
from minip2p.cli import estimate
from minip2p.cli.commands import refuse_file_name
from minip2p.cli.options import load_model
from minip2p.evaluation import edit_benchmark, move_benchmark, move_tables, tables
from minip2p.evaluation.move_cases import read_move_cases
from minip2p.evaluation.pie_bench import Case, read_cases
from minip2p.evaluation.workers import WorkerPool
from minip2p.io import png
from minip2p.io.files import write_text
from minip2p.metrics.clip_score import ClipScore
from minip2p.metrics.dino import DinoStructure
from minip2p.metrics.lpips import Lpips
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.sampling.batches import MAX_BATCH
from minip2p.sampling.guidance import unet_rows
from minip2p.sampling.progress import Progress
from minip2p.sweeps import sweep as sweeps
from minip2p.sweeps.grid import Grid
from minip2p.sweeps.ray_pool import RayPool, check_address
from minip2p.sweeps.shards import ALL_UNITS, Shard
from minip2p.tiny.judge import Judge

# Options that the workers of --ray read: those of the model, and those of what scores.
MODEL_OPTIONS = ("model", "config", "vae", "scheduler", "lora", "embedding", "dtype", "device")
SCORE_OPTIONS = ("clip", "cases", "lpips", "dino")


def sweep(args: Namespace) -> Iterator[None]:
    """Runs a grid of edits. Writes its pictures, its table, and a contact sheet and a chart for each pair of axes."""
    check_extras("a sweep")
    refuse_file_name(Path(args.out))
    from minip2p.sweeps import charts
    from minip2p.sweeps.tradeoff import Tradeoff

    shard, join = read_shard(args)
    grid, pipe, folder = Grid.read(Path(args.grid)), load_driver(args), Path(args.out)
    try:
        jobs = sweeps.plan_jobs(pipe, grid)
    except ValueError as error:
        raise ValueError(f"{args.grid}: {error}") from None
    to_run = [] if join is not None else shard.of(jobs)
    pictures = [folder / name for job in to_run for name in sweeps.picture_names(job)]
    rows_files = [sweeps.rows_file(folder, job.unit) for job in jobs]
    png.check_writable([folder / "grid.json", *charts.result_paths(folder, grid), *rows_files, *pictures])
    score, scored_by = make_scorer(args)
    yield
    if to_run:
        print(sweeps.describe(to_run), flush=True)

    def announced_progress(total: int, counter: RowCounter) -> Progress:
        """A progress bar, after a warning where the rows that are left take minutes."""
        if args.ray is not None:
            return rows_progress(total, counter)
        latent_size, guidance = jobs[0].start.noise.shape, jobs[0].start.guidance_scale
        estimate.announce(
            pipe.components,
            total,
            (latent_size[-2], latent_size[-1]),
            pictures=len(pictures),
            batch=unet_rows(MAX_BATCH, guidance, is_read=pipe.unet.reads_guidance),
            advice="a grid of fewer values, steps or pixels takes less",
        )
        return rows_progress(total, counter)

    counter = RowCounter()
    rows = sweeps.sweep(
        pipe,
        grid,
        folder,
        jobs=jobs,
        score=score,
        scored_by=scored_by,
        shard=shard,
        join=join,
        counter=counter,
        make_pool=make_ray_pool(args, pipe, load_score),
        progress=announced_progress,
    )
    print(f"{counter.rows:,} rows of the UNet were run")
    if args.shard is not None:
        print(describe_shard(shard, len(to_run), len(jobs), "units" if grid.split > 1 else "seeds"))
        return
    print(*charts.write_results(folder, grid, rows, sweeps.sweep_parameters(pipe, grid)), sep="\n")
    print(Tradeoff.of(grid, rows).recommendation())


def bench_edits(args: Namespace) -> Iterator[None]:
    """Runs a benchmark of edits of photographs.

    Writes the edited pictures, a contact sheet of the first cases and a table of all figures. Prints the table of
    means, and in its last line the means as JSON.
    """
    check_extras("a benchmark")
    refuse_file_name(Path(args.out))
    from minip2p.io.tables import to_csv

    shard, join = read_shard(args)
    methods = parse_methods(args.methods, edit_benchmark.METHODS)
    cases = read_cases(None if args.cases is None else Path(args.cases))
    check_count(args.count, len(cases))
    cases, pipe, folder = cases[: args.count], load_driver(args), Path(args.out)
    steps = pipe.scheduler.default_steps if args.steps is None else args.steps
    pipe.scheduler.timesteps(steps)
    results = [folder / "table.csv", folder / "table.md", folder / "sheet.png"]
    row_files = [edit_benchmark.result_files(folder).row_file(cases[0], name) for name in methods]
    png.check_writable([folder / "bench.json", *results, *row_files])
    networks = load_networks(args)
    can_share = networks.judge is not None and networks == edit_benchmark.Networks(networks.judge)
    yield
    jobs = edit_benchmark.jobs_of(cases, methods)
    if join is None and args.ray is None:
        announce_benchmark(pipe, shard.of(jobs), folder, steps)
    rows = edit_benchmark.run_benchmark(
        pipe,
        cases,
        methods,
        folder,
        steps=steps,
        networks=networks,
        shard=shard,
        join=join,
        make_pool=partial(WorkerPool, None, steps) if can_share and is_as_shipped(args) else None,
        make_ray_pool=make_ray_pool(args, pipe, load_networks),
    )
    if args.shard is not None:
        print(describe_shard(shard, len(shard.of(jobs)), len(jobs), "cases by methods"))
        return
    summaries = tables.summarize(rows, methods)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_text(results[0], to_csv([{key: row.get(key) for key in columns} for row in rows]))
    write_text(results[1], tables.markdown_tables(summaries))
    sheet = tables.contact_sheet(folder, cases[: tables.SHEET_CASES], methods)
    write_sheet(
        results[2], sheet, f"{len(cases[: tables.SHEET_CASES])} photographs, edited", pipe, steps, methods, len(cases)
    )
    print(tables.markdown_tables(summaries), *results, tables.json_line(summaries), sep="\n")


def bench_moves(args: Namespace) -> Iterator[None]:
    """Runs the benchmark of objects that are moved, resized, duplicated and removed. Writes what `bench_edits` does."""
    check_extras("a benchmark")
    refuse_file_name(Path(args.out))
    from minip2p.io.tables import to_csv

    shard, join = read_shard(args)
    methods = parse_methods(args.methods, move_benchmark.METHODS)
    cases = read_move_cases(None if args.cases is None else Path(args.cases))
    check_count(args.count, len(cases))
    cases, pipe, folder = cases[: args.count], load_driver(args), Path(args.out)
    steps = move_benchmark.STEPS if args.steps is None else args.steps
    pipe.scheduler.timesteps(steps)
    files = move_benchmark.result_files(folder)
    results = [folder / "table.csv", folder / "table.md", folder / "sheet.png"]
    png.check_writable([folder / "bench.json", *results, *(files.row_file(cases[0], name) for name in methods)])
    jobs = move_benchmark.jobs_of(cases, methods)
    to_run = [] if join is not None else shard.of(jobs)
    count = sum(not files.is_done(case, name) for case, names in to_run for name in names)
    make_pool = partial(WorkerPool, None, steps) if is_as_shipped(args) else None
    yield
    if args.ray is None:
        row = unet_rows(1, pipe.default_guidance, is_read=pipe.unet.reads_guidance)
        advice = "a smaller --count, fewer --methods or --steps take less; an interrupted benchmark continues"
        size = pipe.components.latent_size(None)
        estimate.announce(pipe.components, 2 * row * steps * count, size, pictures=count, batch=2 * row, advice=advice)
    rows = move_benchmark.run_benchmark(
        pipe,
        cases,
        methods,
        folder,
        steps=steps,
        shard=shard,
        join=join,
        make_pool=make_pool,
        make_ray_pool=make_ray_pool(args, pipe, load_judge),
    )
    if args.shard is not None:
        print(describe_shard(shard, len(to_run), len(jobs), "cases"))
        return
    summaries = move_tables.summarize_moves(rows, methods)
    write_text(results[0], to_csv(rows))
    write_text(results[1], move_tables.markdown_tables(summaries))
    shown = cases[: tables.SHEET_CASES]
    sheet = move_tables.contact_sheet(folder, shown, methods)
    write_sheet(results[2], sheet, f"{len(shown)} pictures, edited", pipe, steps, methods, len(cases))
    print(move_tables.markdown_tables(summaries), *results, move_tables.json_line(summaries), sep="\n")


def check_ray(args: Namespace) -> None:
    """Raises ValueError if Ray is not installed, no cluster answers, or the device is not one of its resources."""
    spec = find_spec("ray")
    if spec is None or spec.origin is None:  # a folder called ray, as Ray leaves in /tmp, has no origin
        raise ValueError("--ray needs Ray: pip install 'minip2p[ray]'")
    check_address(args.ray)
    if args.device not in ("cpu", "cuda"):
        raise ValueError(f"--ray chooses the GPU of each worker: --device is cpu or cuda with it, not {args.device}")


def load_driver(args: Namespace) -> Pipeline:
    """The model of the options; with --ray on the CPU, since the workers have the GPUs. Raises ValueError."""
    if args.ray is None:
        return load_model(args)
    check_ray(args)
    return load_model(Namespace(**(vars(args) | {"device": "cpu"})))


def make_ray_pool(
    args: Namespace, pipe: Pipeline, load_scorer: Callable[[Namespace], Any]
) -> Callable[[], RayPool] | None:
    """What makes the pool of --ray, for the model of `load_driver`; None without --ray. load_scorer: loads what scores,
    in each worker."""
    if args.ray is None:
        return None
    options = {name: getattr(args, name, None) for name in (*MODEL_OPTIONS, *SCORE_OPTIONS)}
    load = partial(load_worker, load_scorer, options, os.getcwd())
    return partial(RayPool, args.ray, load, fingerprint=pipe.components.fingerprint, on_gpu=args.device == "cuda")


def load_worker(load_scorer: Callable[[Namespace], Any], options: dict[str, Any], folder: str) -> tuple[Pipeline, Any]:
    """The model and what scores, in a worker of `make_ray_pool`. folder: that relative paths start from."""
    os.chdir(folder)
    args = Namespace(**options)
    return load_model(args), load_scorer(args)


def load_score(args: Namespace) -> sweeps.Score | None:
    """What scores the edits of a sweep."""
    return make_scorer(args)[0]


def load_networks(args: Namespace) -> edit_benchmark.Networks:
    """What measures edits of photographs: the judge for the cases that ship, and what the options name."""
    return edit_benchmark.Networks(
        Judge.load() if args.cases is None else None,
        clip=None if args.clip is None else ClipScore(args.clip),
        lpips=None if args.lpips is None else Lpips(args.lpips),
        dino=None if args.dino is None else DinoStructure(args.dino),
    )


def load_judge(args: Namespace) -> Judge:
    """What measures moves."""
    return Judge.load()


def read_shard(args: Namespace) -> tuple[Shard, list[Path] | None]:
    """--shard, by default the only one, and the folders of --join; None without it. Raises ValueError."""
    shard = ALL_UNITS if args.shard is None else Shard.parse(args.shard)
    return shard, None if args.join is None else [Path(folder) for folder in args.join]


def describe_shard(shard: Shard, count: int, total: int, units: str) -> str:
    """What was run, and what to do when all shards are."""
    return f"shard {shard.number}/{shard.count}: {count} of {total} {units}; --join writes the tables of all shards"


def write_sheet(
    file: Path, sheet: Image.Image, title: str, pipe: Pipeline, steps: int, methods: Sequence[str], cases: int
) -> None:
    """Writes the contact sheet of a benchmark, with its settings."""
    settings = {"Steps": steps, "Methods": ",".join(methods), "Cases": cases, **pipe.origin.labels}
    text = ", ".join(f"{name}: {metadata.quote_value(value)}" for name, value in settings.items())
    png.write_pngs([(file, sheet, f"{title}\n{text}")])


def is_as_shipped(args: Namespace) -> bool:
    """Whether the options name the model that ships as it is, in float32 on the CPU: the one that a pool loads."""
    is_changed = any((args.model, args.vae, args.lora, args.embedding, args.scheduler))
    return not is_changed and args.dtype == "float32" and args.device == "cpu"


def check_count(count: int | None, cases: int) -> None:
    """Raises ValueError for a --count of no case or of more than there are."""
    if count is not None and not 1 <= count <= cases:
        raise ValueError(f"--count must lie between 1 and {cases}, and is {count}")


def announce_benchmark(pipe: Pipeline, jobs: Sequence[tuple[Case, str]], folder: Path, steps: int) -> None:
    """Warns, by a Notice, where the jobs that are left, each a case by a method, take minutes."""
    rows = pictures = 0
    row = unet_rows(1, pipe.default_guidance, is_read=pipe.unet.reads_guidance)
    for case, name in jobs:
        method = edit_benchmark.methods_for(case)[name]
        if edit_benchmark.result_files(folder).is_done(case, name):
            continue
        pictures += 1  # an encoded picture takes about half of the time of a decoded one
        if method is not None:
            rows += steps * (estimate.inversion_rows(method.inversion, row) + 2 * row)
            pictures += 1 + estimate.REFINE_PICTURES * method.vae_refine_steps
    size = pipe.components.latent_size(edit_benchmark.training_size(pipe))
    advice = "a smaller --count, fewer --methods or --steps take less; an interrupted benchmark continues"
    estimate.announce(pipe.components, rows, size, pictures=pictures, batch=2 * row, advice=advice)


def parse_methods(text: str, known: Iterable[str]) -> list[str]:
    """'ddim,direct' -> ['ddim', 'direct']; 'all' -> all methods. Raises ValueError for one that is not known."""
    known = list(known)
    methods = known if text == "all" else text.split(",")
    if unknown := [name for name in methods if name not in known]:
        raise ValueError(f"--methods has {unknown[0]!r}; the methods are {', '.join(known)}, or all")
    return methods


def check_extras(purpose: str) -> None:
    """Raises ValueError if a package of the extra "sweep" is not installed. purpose: what needs it, for the message."""
    try:
        import skimage.metrics  # noqa: F401, imported when the first figures are computed

        from minip2p.sweeps import charts  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{purpose} needs {error.name}: pip install 'minip2p[sweep]'") from None


def make_scorer(args: Namespace) -> tuple[sweeps.Score | None, str | None]:
    """What scores the edits of a sweep, and its name: the CLIP of --clip; for the models that ship, their judge."""
    if args.clip is not None:
        clip = ClipScore(args.clip)
        return clip.score, clip.name
    return (Judge.load().score, "judge") if is_shipped(args.model) else (None, None)


def rows_progress(total: int, counter: RowCounter) -> Progress:
    """A progress bar in rows of the UNet, which take most of the time and all the same time.

    total: how many rows will be run. counter: counts those that have been run.
    """
    bar = tqdm(total=total, disable=None, leave=False, unit="row")

    def progress(steps: Iterable[Any]) -> Iterator[Any]:
        for step in steps:
            yield step
            bar.update(counter.rows - bar.n)

    return progress
