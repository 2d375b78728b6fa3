"""Runs a grid of edits of one prompt, every combination of the values that are compared: minip2p sweep grid.toml

All cells of a seed are edits of the same source and run step by step together (`minip2p.p2p.editing`), so that steps on
which they agree are run once. A seed is a job, or several where `Grid.split` says so: the pictures and figures of a job
are written when all of its cells are finished. A sweep that was killed therefore continues with the unfinished jobs,
and its results are the same to the byte.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from minip2p.checkpoints.components import RowCounter
from minip2p.io import png
from minip2p.io.files import claim_results_folder, read_json_value, write_files, write_text
from minip2p.io.images import to_pil
from minip2p.metrics.image import preservation
from minip2p.p2p.batching import BatchPlan, plan_batches, split_targets
from minip2p.p2p.editing import run_edits
from minip2p.p2p.targets import EditTarget
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.sampling.guidance import unet_rows
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunSettings, RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.sweeps.grid import AXES, Grid, label, make_target
from minip2p.sweeps.ray_pool import RayPool
from minip2p.sweeps.shards import ALL_UNITS, Shard, check_join, copy_files, refuse_unfinished

# Source and edited picture (3 H W in [-1, 1]), their prompts, a mask H W -> further figures, always of the same names.
Score = Callable[[Tensor, Tensor, str, str, Tensor | None], Mapping[str, float]]


@dataclass(frozen=True)
class Unit:
    """Which cells a job has, as plain data, which a worker of another machine can receive.

    cells: their numbers in the table. part: of the `parts` that the cells of the seed are split into, counted from 1.
    """

    seed: Any
    cells: tuple[int, ...]
    part: int = 1
    parts: int = 1

    def __str__(self) -> str:
        return f"seed {self.seed}" + (f", part {self.part} of {self.parts}" if self.parts > 1 else "")


@dataclass(frozen=True)
class Job:
    """Cells of one seed, which run together."""

    unit: Unit
    cells: list[dict[str, Any]]
    start: RunStart
    targets: list[EditTarget]
    plan: BatchPlan

    @property
    def rows(self) -> int:
        """The UNet rows of the job, with those that only the source's picture needs."""
        return self.plan.predicted_rows(self.start) + self.rows_of_a_run(self.plan.source_steps)

    @property
    def separate_rows(self) -> int:
        """The UNet rows if each cell ran on its own, with its source, to the end."""
        return 2 * len(self.cells) * self.rows_of_a_run(0)

    def rows_of_a_run(self, first: int) -> int:
        """The UNet rows of one picture from the step `first` on."""
        start = self.start
        scales = [
            start.conditioning.executed_scale(i, start.steps, start.guidance_scale) for i in range(first, start.steps)
        ]
        return sum(unet_rows(1, scale, is_read=self.plan.reads_guidance) for scale in scales)


def plan_jobs(pipe: Pipeline, grid: Grid) -> list[Job]:
    """The jobs of a sweep, all checked before any of them runs. Raises ValueError."""
    jobs = []
    for n, seed in enumerate(grid.axes["seed"]):
        count = len(grid.cells(seed))
        all_cells = plan_job(pipe, grid, Unit(seed, tuple(range(n * count, (n + 1) * count))))
        parts = split_targets(all_cells.plan, grid.split)
        if len(parts) == 1:
            jobs.append(all_cells)
            continue
        for number, members in enumerate(parts, 1):
            unit = Unit(seed, tuple(all_cells.unit.cells[i] for i in members), number, len(parts))
            jobs.append(part_of(pipe, all_cells, unit, members))
    return jobs


def plan_job(pipe: Pipeline, grid: Grid, unit: Unit) -> Job:
    """The job of cells of a grid. Raises ValueError."""
    start = pipe.prepare(grid.source, RunSettings(seed=unit.seed, **grid.run_options))
    of_seed = grid.cells(unit.seed)
    cells = [of_seed[number % len(of_seed)] for number in unit.cells]
    targets = [make_target(pipe, start, cell) for cell in cells]
    return Job(unit, cells, start, targets, plan_batches(pipe.components, start, targets))


def part_of(pipe: Pipeline, job: Job, unit: Unit, members: Sequence[int]) -> Job:
    """The job of some of a job's cells. members: their places in it."""
    targets = [job.targets[i] for i in members]
    plan = plan_batches(pipe.components, job.start, targets)
    return Job(unit, [job.cells[i] for i in members], job.start, targets, plan)


def describe(jobs: Sequence[Job]) -> str:
    """The size of a sweep in one line."""
    cells, rows = sum(len(job.cells) for job in jobs), sum(job.rows for job in jobs)
    separate = sum(job.separate_rows for job in jobs)
    count = len({job.unit.seed for job in jobs})
    sources = f"{count} source{'s' * (count != 1)}"
    if any(job.unit.parts > 1 for job in jobs):
        sources += f" in {len(jobs)} unit{'s' * (len(jobs) != 1)}"
    edits = f"{cells} edit{'s' * (cells != 1)}"
    return f"{edits} of {sources}: {rows:,} rows of the UNet; {separate:,} if each edit ran on its own"


def sweep(
    pipe: Pipeline,
    grid: Grid,
    folder: Path,
    *,
    jobs: Sequence[Job] | None = None,
    score: Score | None = None,
    scored_by: str | None = None,
    shard: Shard = ALL_UNITS,
    join: Sequence[Path] | None = None,
    counter: RowCounter | None = None,
    make_pool: Callable[[], RayPool] | None = None,
    progress: Callable[[int, RowCounter], Progress] = lambda total, counter: iter,
) -> list[dict[str, Any]]:
    """Runs the unfinished jobs of a grid and returns the table, a row for each cell that is finished.

    jobs: those of `plan_jobs`, if they are planned already; a job runs once. score: further figures of each cell.
    scored_by: the name of what scores; a folder is continued with the same only.
    shard: runs only these of the jobs; each process that works in a folder has another. join: runs nothing and copies
    jobs that are finished in these folders; then all must be.
    counter: counts the UNet rows that are run. make_pool: makes the pool of workers that share the jobs; each has the
    same model and what scores. progress(rows to run, counter) -> the progress bar of the edits.
    Raises ValueError for a folder that holds another grid's results.
    """
    jobs = plan_jobs(pipe, grid) if jobs is None else jobs
    settings = {
        "grid": grid.as_dict(),
        "model": pipe.components.fingerprint,
        "scored": scored_by or getattr(score, "__qualname__", None),
    }
    place = folder / "grid.json", folder / "parts", settings, "the sweep of another grid or model"
    if join is not None:
        check_join(*place, join)
        sources = {job.unit: find_finished(job, (folder, *join)) for job in jobs}
        refuse_unfinished(folder, [str(unit) for unit, source in sources.items() if source is None], len(jobs))
    claim_results_folder(*place)
    if join is not None:
        return join_jobs(folder, jobs, sources)
    finished = {job.unit: load_finished(folder, job) for job in jobs}  # reads, and so checks, all of them
    unfinished = [job for job in shard.of(jobs) if finished[job.unit] is None]
    counter = counter or RowCounter()
    bar = progress(sum(job.rows for job in unfinished), counter)
    if make_pool is not None and unfinished:

        def receive(results: JobResults) -> None:
            counter.rows += results.unet_rows
            results.write(folder)

        with make_pool() as pool:
            pool.run_all(partial(run_unit, grid=grid), [job.unit for job in unfinished], receive, bar)
    else:
        for job in unfinished:
            run_job(pipe, job, score, counter, bar).write(folder)
    return sorted((row for job in jobs for row in load_finished(folder, job) or []), key=itemgetter("cell"))


def find_finished(job: Job, folders: Sequence[Path]) -> Path | None:
    """The first of the folders in which a job is finished."""
    return next((folder for folder in folders if load_finished(folder, job) is not None), None)


def join_jobs(folder: Path, jobs: Sequence[Job], sources: Mapping[Unit, Path | None]) -> list[dict[str, Any]]:
    """Copies the jobs that are finished in other folders, and returns the whole table. sources: where each is."""
    for job in jobs:
        source = sources[job.unit]
        if source is not None and source != folder:
            names = [*map(Path, picture_names(job)), rows_file(Path(), job.unit)]  # the rows last, see `rows_file`
            copy_files(source, folder, names)
    return sorted((row for job in jobs for row in load_finished(folder, job) or []), key=itemgetter("cell"))


@dataclass(frozen=True)
class JobResults:
    """The files of a finished job as plain data, which a worker of another machine can send.

    pictures: the contents of the files, by their names. table: the file of its rows of the table. unet_rows: how many
    rows of the UNet were run.
    """

    unit: Unit
    pictures: Mapping[str, bytes]
    table: str
    unet_rows: int

    def write(self, folder: Path) -> None:
        """Writes the files; that of the rows last, see `rows_file`."""
        write_files((folder / name, content) for name, content in self.pictures.items())
        write_text(rows_file(folder, self.unit), self.table)


def run_job(
    pipe: Pipeline, job: Job, score: Score | None, counter: RowCounter, progress: Progress = iter
) -> JobResults:
    """Runs a job. counter, progress: as `sweep` has them."""
    rows_before = counter.rows
    runs = run_edits(pipe.counting(counter).components, job.start, job.targets, progress=progress)
    assert runs[0].source_run is not None
    source = runs[0].source_run.finish()
    before = source.picture
    pictures, rows = {source_name(job.unit.seed): png.encode(to_pil(before), metadata.parameters(source))}, []
    for number, cell, target, run in zip(job.unit.cells, job.cells, job.targets, runs, strict=True):
        after = run.picture
        mask = None if target.blend_state is None else upsample_mask(target.blend_state.mask().cpu(), after)
        figures = preservation(before, after, mask)
        if score is not None:
            figures |= score(before, after, source.prompt, run.prompt, mask)
        rows.append({"cell": number, **cell, "picture": picture_name(number), **figures})
        text = metadata.parameters(run, **cell_settings(cell))
        pictures[picture_name(number)] = png.encode(to_pil(after), text)
    table = json.dumps([without_nan(row) for row in rows], indent=1) + "\n"
    return JobResults(job.unit, pictures, table, counter.rows - rows_before)


def run_unit(pipe: Pipeline, score: Score | None, number: int, unit: Unit, grid: Grid) -> JobResults:
    """Runs a job in a worker of a pool."""
    return run_job(pipe, plan_job(pipe, grid, unit), score, RowCounter())


def rows_file(folder: Path, unit: Unit) -> Path:
    """The file of a job's rows of the table. It is written last, so a job is finished when it exists."""
    part = f"-part{unit.part}" if unit.parts > 1 else ""
    return folder / "parts" / f"seed{unit.seed}{part}.json"


def picture_names(job: Job) -> list[str]:
    """The file names of all pictures of a job. All jobs of a seed write the source's, with the same bytes."""
    return [source_name(job.unit.seed), *map(picture_name, job.unit.cells)]


def load_finished(folder: Path, job: Job) -> list[dict[str, Any]] | None:
    """The rows of a finished job; None where its rows or one of its pictures are missing. Raises ValueError for a file
    that does not hold the rows of these cells."""
    file = rows_file(folder, job.unit)
    if not file.exists() or not all((folder / name).exists() for name in picture_names(job)):
        return None
    try:
        rows = read_json_value(file)
        valid = are_rows_of(job, rows)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        valid = False
    if not valid:
        raise ValueError(
            f"{file}: does not hold the figures of its {len(job.cells)} cells: remove it to run them again"
        )
    return rows


def are_rows_of(job: Job, rows: Any) -> bool:
    """Whether these are the rows of a job's cells: the same cells in the same order, and numbers or None as figures."""
    numbered = zip(job.unit.cells, job.cells, strict=True)
    expected = [{"cell": n, **cell, "picture": picture_name(n)} for n, cell in numbered]
    valid = len(rows) == len(expected) and all(row.keys() == rows[0].keys() for row in rows)
    for row, cell in zip(rows, json.loads(json.dumps(expected)), strict=True):
        figures = [value for name, value in row.items() if name not in cell]
        valid &= all(row[name] == cell[name] for name in cell)
        valid &= all(value is None or isinstance(value, int | float) for value in figures)
    return valid


def source_name(seed: Any) -> str:
    """The file name of the picture that the cells of a seed edit."""
    return f"source-seed{seed}.png"


def picture_name(cell: int) -> str:
    """The file name of a cell's picture."""
    return f"{cell:05d}.png"


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with None for NaN, which JSON does not have."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def cell_settings(cell: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a cell that are not the defaults, as its picture's parameters name them."""
    return {
        name.capitalize(): label(value)
        for name, value in cell.items()
        if name not in ("seed", "target") and value != AXES[name]
    }


def sweep_parameters(pipe: Pipeline, grid: Grid) -> str:
    """The settings of a sweep, in the form of a picture's parameters; the values of an axis are separated by " | "."""
    start = pipe.prepare(grid.source, RunSettings(seed=grid.axes["seed"][0], **grid.run_options))
    latents = start.noise.expand(start.steps + 1, -1, -1, -1)  # only their shape is read
    axes = {
        name.capitalize(): " | ".join(label(value) for value in values)
        for name, values in grid.axes.items()
        if list(values) != [AXES[name]] or name == "seed"
    }
    return metadata.parameters(Trajectory.from_start(pipe.components, start, latents), **axes)


def upsample_mask(mask: Tensor, picture: Tensor) -> Tensor:
    """A mask h w of the latents as a mask H W of the picture 3 H W, by the nearest pixel."""
    return F.interpolate(mask[None, None].float(), picture.shape[1:], mode="nearest")[0, 0] > 0.5
