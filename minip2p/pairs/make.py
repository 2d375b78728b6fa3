"""Makes pairs, unit by unit, and the data set of all units: minip2p pairs prompts.jsonl -o out

A unit's file is written when all of its candidates are finished. So a run that was killed continues with the units that
are missing, several processes can share the work, and the result is the same to the byte.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from minip2p.io.files import claim_results_folder
from minip2p.metrics.clip_score import ClipScore
from minip2p.pairs.candidates import make_candidates
from minip2p.pairs.dataset import FORMATS, PICTURES, Row, candidate_row, read_unit, write_table, write_unit
from minip2p.pairs.prompts import Unit
from minip2p.pairs.settings import PairSettings, best, passes
from minip2p.pipeline import Pipeline
from minip2p.sampling.guidance import unet_rows
from minip2p.sampling.progress import Progress
from minip2p.sweeps.ray_pool import RayPool, run_units
from minip2p.sweeps.shards import ALL_UNITS, Shard, check_join, copy_files, refuse_unfinished

DESCRIPTION = "pairs of other prompts, settings or another model"


def unit_file(folder: Path, unit: Unit) -> Path:
    """The file of a unit. The unit is finished when it exists."""
    return folder / "units" / f"{unit.key}.parquet"


def make_pairs(
    pipe: Pipeline,
    units: Sequence[Unit],
    settings: PairSettings,
    folder: Path,
    *,
    clip: ClipScore | None = None,
    shard: Shard = ALL_UNITS,
    join: Sequence[Path] | None = None,
    make_pool: Callable[[], RayPool] | None = None,
    progress: Progress = iter,
) -> None:
    """Makes the units that are not finished.

    clip: filters the pairs; None lets the model itself do it. shard: makes only these of the units; each process that
    works in a folder has another. join: makes nothing and copies units that are finished in these folders; then all
    must be. make_pool: makes the pool of workers that share the units; each has the same model and the same CLIP.
    Raises ValueError for a folder that holds other pairs, and for what the model cannot take; for the latter,
    all prompts are checked before anything is made.
    """
    description = {
        "prompts": hashlib.sha256(json.dumps([asdict(unit) for unit in units]).encode()).hexdigest(),
        "settings": settings.as_dict(),
        "model": pipe.components.fingerprint,
        "clip": clip and clip.name,
    }
    check_units(pipe, units, settings, clip)
    place = folder / "pairs.json", folder / "units", description, DESCRIPTION
    if join is None:
        claim_results_folder(*place)
    else:
        check_join(*place, join)
        sources = [next((f for f in (folder, *join) if unit_file(f, unit).exists()), None) for unit in units]
        missing = [f"that of {unit.source!r}" for unit, source in zip(units, sources, strict=True) if source is None]
        refuse_unfinished(folder, missing, len(units))
        claim_results_folder(*place)
        for unit, source in zip(units, sources, strict=True):
            if source is not None and source != folder:
                copy_files(source, folder, [unit_file(Path(), unit)])
        return
    missing_units = [unit for unit in shard.of(units) if not unit_file(folder, unit).exists()]
    if make_pool is not None and missing_units:
        write = partial(make_unit, settings=settings)
        run_units(make_pool, write, missing_units, folder, progress=progress, name=lambda unit: repr(unit.source))
        return
    for unit in progress(missing_units):
        make_unit(pipe, clip, unit, folder, settings)


def make_unit(pipe: Pipeline, clip: ClipScore | None, unit: Unit, folder: Path, settings: PairSettings) -> None:
    """Makes a unit and writes its file."""
    write_unit(unit_file(folder, unit), unit_rows(pipe, unit, settings, clip))


def check_units(pipe: Pipeline, units: Sequence[Unit], settings: PairSettings, clip: ClipScore | None) -> None:
    """Raises ValueError for settings and prompts that the model cannot take."""
    for kind in dict.fromkeys(target.kind for unit in units for target in unit.targets):
        settings.of(kind).thresholds(clip is not None)
    pipe.prepare("", settings.run(0, settings.guidance[1]))
    for unit in units:
        for text in (unit.source, *(target.prompt for target in unit.targets)):
            pipe.text.prompt(text)


def unit_rows(pipe: Pipeline, unit: Unit, settings: PairSettings, clip: ClipScore | None) -> list[dict[str, Any]]:
    """The rows of all candidates of a unit; the best of those that pass the filters have a rank and pictures."""
    rows = []
    for candidate in make_candidates(pipe, unit, settings, clip):
        is_good = passes(candidate.scores, settings.of(candidate.target.kind).thresholds(clip is not None))
        rows.append(candidate_row(candidate, 1 if is_good else None))  # as PNG: 100 samples would not fit as tensors
    for target in unit.targets:
        good = [row for row in rows if row["rank"] is not None and row["edited_prompt"] == target.prompt]
        for place, index in enumerate(best(good)):
            is_kept = place < settings.of(target.kind).keep
            good[index].update({"rank": place + 1} if is_kept else dict.fromkeys(("rank", *PICTURES)))
    return rows


def finished_units(folder: Path, units: Sequence[Unit]) -> Iterator[Sequence[Row]]:
    """The rows of each unit. Raises ValueError for a damaged file."""
    for unit in units:
        yield read_unit(unit_file(folder, unit))


def write_dataset(folder: Path, units: Sequence[Unit], formats: Sequence[str]) -> list[Path]:
    """Writes the pairs of all units in these of FORMATS, and the table of all candidates. Returns the files."""

    def pairs() -> Iterator[list[Row]]:
        for rows in finished_units(folder, units):
            yield sorted(
                (row for row in rows if row["rank"] is not None), key=lambda row: (row["edited_prompt"], row["rank"])
            )

    files = [FORMATS[name](folder, pairs()) for name in formats]
    return [*files, write_table(folder, finished_units(folder, units))]


def summarize(folder: Path, units: Sequence[Unit]) -> str:
    """A line for each kind: how many candidates, edits with at least a pair, and pairs there are."""
    counts: dict[str, list[int]] = {}
    for rows in finished_units(folder, units):
        for row in rows:
            count = counts.setdefault(row["kind"], [0, 0, 0])
            for place, is_counted in enumerate((True, row["rank"] == 1, row["rank"] is not None)):
                count[place] += is_counted
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    lines = [
        f"{kind}: {pairs} pairs of {edits} edits, from {candidates} candidates"
        for kind, (candidates, edits, pairs) in [*sorted(counts.items()), ("all", total)]
    ]
    return "\n".join(lines)


def predicted_rows(pipe: Pipeline, units: Sequence[Unit], settings: PairSettings, has_clip: bool) -> int:
    """About how many rows of the UNet units take: steps that targets share are not known before the draws."""
    row = unet_rows(1, settings.guidance[1], is_read=pipe.unet.reads_guidance)
    steps, rows = settings.steps or pipe.scheduler.default_steps, 0
    for unit in units:
        masks = [settings.of(target.kind).masks for target in unit.targets]
        edits = sum(map(len, masks))
        source = row + 2 * any(each != ("none",) for each in masks)
        rows += steps * (source + row * edits) + (0 if has_clip else settings.noises * (1 + len(masks) + 2 * edits))
    return settings.samples * rows
