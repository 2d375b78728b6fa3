"""The results of the benchmark of moves: means with confidence intervals, as tables and JSON, and a contact sheet."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from minip2p.evaluation.move_benchmark import result_files
from minip2p.evaluation.move_cases import MoveCase
from minip2p.evaluation.result_files import Row
from minip2p.evaluation.tables import Summary, difference, format_cell, table_lines
from minip2p.io import viz
from minip2p.io.images import read_image, to_pil
from minip2p.metrics.image import interval

# What the tables and the last line call the success with kinds of cases.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "moved_horizontal": ("horizontal",),
        "moved_diagonal": ("diagonal",),
        "moved_depth": ("depth",),
        "resize": ("enlarge", "shrink"),
        "duplicate": ("duplicate",),
        "remove": ("remove",),
    }
)
DECIBELS: Mapping[str, str] = MappingProxyType(
    {
        "background": "psnr_background",
        "hole": "psnr_hole",
        "object": "psnr_object",
        "whole": "psnr",
    }
)


def summarize_moves(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, Summary]:
    """A summary of each method, without the figures that have no values.

    GROUPS: the success in percent. …_db: the PSNR against the true result, over the cases that all methods can edit:
    not those where an object is duplicated or removed. whole_db_…, hole_db_…: of a group; over_paste_…: of the whole,
    less that of "paste", paired case by case. rows and seconds: of the edit, without the inversion.
    """
    baseline = {row["case"]: row for row in rows if row["method"] == "paste"}
    summaries: dict[str, Summary] = {}
    for name in methods:
        of_method = [row for row in rows if row["method"] == name]
        summary: dict[str, tuple[float, float]] = {}
        for group, kinds in GROUPS.items():
            of_group = [row for row in of_method if row["kind"] in kinds]
            summary[group] = scaled(interval(row["success"] for row in of_group), 100)
            summary[f"whole_db_{group}"] = interval(row["psnr"] for row in of_group)
            gains = (difference(row, baseline.get(row["case"], {}), "psnr") for row in of_group)
            summary[f"over_paste_{group}"] = interval(gains)
            summary[f"hole_db_{group}"] = interval(row.get("psnr_hole") for row in of_group)
        moved = [row for row in of_method if row["kind"] not in ("duplicate", "remove")]
        for part, metric in DECIBELS.items():
            summary[f"{part}_db"] = interval(row.get(metric) for row in moved)
        for cost in ("rows", "seconds"):
            summary[cost] = interval(row[cost] for row in of_method)
        summaries[name] = {key: value for key, value in summary.items() if not math.isnan(value[0])}
        summaries[name] |= {"cases": (len(of_method), 0)}  # type: ignore[operator]
    return summaries


def scaled(value: tuple[float, float], factor: float) -> tuple[float, float]:
    """A mean and half of its interval, times a factor."""
    return value[0] * factor, value[1] * factor


def markdown_tables(summaries: Mapping[str, Summary]) -> str:
    """The summaries in markdown: what was done right, the decibels, and the whole picture by kinds of cases."""
    titles = [group.replace("_", " ") + " %" for group in GROUPS]
    lines = table_lines(titles, summaries, lambda summary: [format_cell(summary, key, 1) for key in GROUPS])
    keys = [*(f"{part}_db" for part in DECIBELS), "rows", "seconds"]
    titles = [key.replace("_db", ", dB") for key in keys]
    lines += table_lines(titles, summaries, lambda summary: [format_cell(summary, key, 1) for key in keys])
    for prefix, title in (("whole_db", "whole, dB"), ("over_paste", "whole, dB over paste"), ("hole_db", "hole, dB")):
        lines += group_lines(prefix, title, summaries)
    return "\n".join(lines)


def group_lines(prefix: str, title: str, summaries: Mapping[str, Summary]) -> list[str]:
    """The lines of a table with a column for each group of cases. prefix: of the keys."""
    first, *names = (group.removeprefix("moved_") for group in GROUPS)
    keys = [f"{prefix}_{group}" for group in GROUPS]
    titles = [f"{title}: {first}", *names]
    return table_lines(titles, summaries, lambda summary: [format_cell(summary, key, 1) for key in keys])


def contact_sheet(folder: Path, cases: Sequence[MoveCase], methods: Sequence[str]) -> Image.Image:
    """A column for each case: its picture, the true result, and the picture that each method made; the picture itself
    where a method cannot edit it."""
    files = result_files(folder)
    panels = []
    for n, title in enumerate(("before", "true result")):
        panels += [(to_pil(case.pictures[n]), f"{title}: {case.kind}, {case.word}") for case in cases]
    for name in methods:
        for case in cases:
            file = files.picture_file(case, name)
            picture, label = (read_image(file), name) if file.exists() else (to_pil(case.pictures[0]), f"not by {name}")
            panels.append((picture, label))
    return viz.grid(panels, columns=len(cases))


def json_line(summaries: Mapping[str, Summary]) -> str:
    """The figures of "move" in one line of JSON, each with half of its 95 % confidence interval as `…_ci`.

    `paste_whole_db` is that of "paste", if it was run. Without "move", there is only the number of cases.
    """
    summary = summaries.get("move", {})
    values = {key: summary[key] for key in (*GROUPS, "background_db", "whole_db") if key in summary}
    if "whole_db" in summaries.get("paste", {}):
        values["paste_whole_db"] = summaries["paste"]["whole_db"]
    cases = max((int(each["cases"][0]) for each in summaries.values()), default=0)
    figures: dict[str, float | None] = {"cases": cases}
    for key, (mean, half) in values.items():
        figures |= {key: float(f"{mean:.4g}"), f"{key}_ci": None if math.isnan(half) else float(f"{half:.3g}")}
    return json.dumps(figures)
