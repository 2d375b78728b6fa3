"""A grid of edits of one prompt, every combination of what is to be compared: minip2p sweep grid.toml

The cells of one seed are edits of one source and go through the steps together, as a tree (`minip2p.p2p.editing`): what they
have in common is run once. A seed is the unit of work: its pictures and figures are written when all of its cells are
there, so a sweep that was killed goes on with the seeds that are not done, and ends with the same bytes.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.checkpoints.components import unet_rows
from minip2p.io import png
from minip2p.io.files import claim_results_folder, write_text
from minip2p.io.images import to_pil
from minip2p.metrics.image import preservation
from minip2p.p2p.batching import BatchPlan, plan_batches
from minip2p.p2p.editing import run_edits
from minip2p.p2p.targets import EditTarget
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.sampling.progress import Progress
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory
from minip2p.sweeps.grid import AXES, Grid, label, make_target

BATCH = 8  # rows of targets that run at once


# Source and edited picture (3 H W in [-1, 1]), their prompts, the mask H W -> further figures, always the same names.
Score = Callable[[Tensor, Tensor, str, str, Tensor | None], Mapping[str, float]]


@dataclass(frozen=True)
class SeedJob:
    """The cells of one seed. first: the number of the first of them in the table."""

    seed: Any
    first: int
    cells: list[dict[str, Any]]
    start: RunSettings
    targets: list[EditTarget]
    plan: BatchPlan

    @property
    def rows(self) -> int:
        """The UNet rows that it takes, with those that only the source's picture needs."""
        rest = self.start.steps - self.plan.source_steps
        return self.plan.predicted_rows(self.start, BATCH) + rest * unet_rows(1, self.start.guidance_scale)


def plan_jobs(model: Pipeline, grid: Grid) -> list[SeedJob]:
    """The whole work, checked before any of it is done. Raises ValueError."""
    found: list[SeedJob] = []
    for seed in grid.axes["seed"]:
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in grid.run_options.items()}
        start, cells = model.prepare(grid.source, seed=seed, **options), grid.cells(seed)
        targets = [make_target(model, start, cell) for cell in cells]
        found.append(SeedJob(seed, len(found) * len(cells), cells, start, targets, plan_batches(model, start, targets)))
    return found


def describe(work: Sequence[SeedJob]) -> str:
    """What the plan comes to, in one line."""
    cells, rows = sum(len(unit.cells) for unit in work), sum(unit.rows for unit in work)
    alone = sum(4 * unit.start.steps * len(unit.cells) for unit in work)
    return (
        f"{cells} edits of {len(work)} sources: {rows:,} rows of the UNet; as many runs of two prompts take {alone:,}"
    )


def sweep(
    model: Pipeline,
    grid: Grid,
    folder: Path,
    *,
    score: Score | None = None,
    scored_by: str | None = None,
    progress: Callable[[int, Callable[[], int]], Progress] = lambda total, done: iter,
) -> list[dict[str, Any]]:
    """Runs what is not there yet of a grid and returns the table, a row a cell. Raises ValueError for a folder that
    holds another grid's. One process at a time works on a folder.

    score: further figures of each cell; scored_by: what they are by, since a folder goes on with the same alone.
    progress(rows to run, rows run so far) -> what `edit` shows its progress by.
    """
    work = plan_jobs(model, grid)
    what = {
        "grid": json.loads(grid.text),
        "model": model.fingerprint,
        "scored": scored_by or getattr(score, "__qualname__", None),
    }
    claim_results_folder(folder / "grid.json", folder / "parts", what, "the sweep of another grid or model")
    before = [
        load_finished(folder, unit) for unit in work
    ]  # whatever is wrong with them is said before anything is run
    left = [unit for unit, rows in zip(work, before, strict=True) if rows is None]
    begun = model.rows
    shown = progress(sum(unit.rows for unit in left), lambda: model.rows - begun)
    for unit in left:
        runs = run_edits(model, unit.start, unit.targets, batch=BATCH, progress=shown)
        files, rows = job_results(unit, runs, score)
        png.write_pngs([(folder / name, picture, text) for name, picture, text in files])
        write_text(rows_file(folder, unit), json.dumps([without_nan(row) for row in rows], indent=1) + "\n")
    return [row for unit in work for row in load_finished(folder, unit) or []]


def job_results(
    unit: SeedJob, runs: Sequence[Trajectory], score: Score | None
) -> tuple[list[tuple[str, Image.Image, str]], list[dict[str, Any]]]:
    """A unit's pictures (name, picture, parameters) and its rows of the table."""
    source = runs[0].source
    assert source is not None
    before = source.picture
    files, rows = [(source_name(unit), to_pil(before), metadata.parameters(source))], []
    for n, (cell, target, run) in enumerate(zip(unit.cells, unit.targets, runs, strict=True), unit.first):
        after = run.picture
        mask = None if target.blend_state is None else upsample_mask(target.blend_state.mask(), after)
        figures = preservation(before, after, mask)
        if score is not None:
            figures |= score(before, after, source.prompt, run.prompt, mask)
        rows.append({"cell": n, **cell, "picture": picture_name(n), **figures})
        files.append((picture_name(n), to_pil(after), metadata.parameters(run, **cell_settings(cell))))
    return files, rows


def rows_file(folder: Path, unit: SeedJob) -> Path:
    """Where a unit's rows of the table are kept; it is there when the unit is done."""
    return folder / "parts" / f"seed{unit.seed}.json"


def picture_names(unit: SeedJob) -> list[str]:
    return [source_name(unit), *(picture_name(unit.first + n) for n in range(len(unit.cells)))]


def load_finished(folder: Path, unit: SeedJob) -> list[dict[str, Any]] | None:
    """A unit's rows of the table, or None where they or one of its pictures are not there. Raises ValueError for a file
    that is not of these cells."""
    file = rows_file(folder, unit)
    if not file.exists() or not all((folder / name).exists() for name in picture_names(unit)):
        return None
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        said = [{"cell": n, **cell, "picture": picture_name(n)} for n, cell in enumerate(unit.cells, unit.first)]
        whole = len(rows) == len(said) and all(row.keys() == rows[0].keys() for row in rows)
        for row, cell in zip(rows, json.loads(json.dumps(said)), strict=True):
            figures = [value for name, value in row.items() if name not in cell]
            whole &= all(row[name] == cell[name] for name in cell)
            whole &= all(value is None or isinstance(value, int | float) for value in figures)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        whole = False
    if not whole:
        raise ValueError(f"{file}: not the figures of its {len(unit.cells)} cells: remove it, and they are made again")
    return rows


def source_name(unit: SeedJob) -> str:
    return f"source-seed{unit.seed}.png"


def picture_name(cell: int) -> str:
    return f"{cell:05d}.png"


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON can hold it: no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def cell_settings(cell: Mapping[str, Any]) -> dict[str, str]:
    """A cell's settings that are not an edit's own by default, as a picture says them."""
    return {
        name.capitalize(): label(value)
        for name, value in cell.items()
        if name not in ("seed", "target") and value != AXES[name]
    }


def upsample_mask(mask: Tensor, picture: Tensor) -> Tensor:
    """A mask of the latent in the picture's pixels."""
    return F.interpolate(mask[None, None].float(), picture.shape[1:], mode="nearest")[0, 0] > 0.5
