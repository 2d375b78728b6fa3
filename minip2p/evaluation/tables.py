"""The results of an editing benchmark: means with confidence intervals, as tables and as JSON, and a contact sheet."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from minip2p.evaluation.edit_benchmark import METRICS, result_files
from minip2p.evaluation.pie_bench import Case
from minip2p.evaluation.result_files import Row
from minip2p.io import viz
from minip2p.io.images import read_image
from minip2p.metrics.image import interval

SHEET_CASES = 7  # on a contact sheet; of the cases that ship, this is one of each kind

Summary = Mapping[str, tuple[float, float]]  # metric -> its mean, and half of its 95 % confidence interval

# The columns of the table: metric -> title, factor.
COLUMNS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "structure": ("structure × 10³ ↓", 1e3),
        "structure_dino": ("DINO structure × 10³ ↓", 1e3),
        "psnr": ("PSNR ↑", 1),
        "gain": ("… over ddim", 1),
        "mse": ("MSE × 10⁴ ↓", 1e4),
        "ssim": ("SSIM × 10² ↑", 1e2),
        "psnr_kept": ("PSNR of other things ↑", 1),
        "psnr_filled": ("PSNR, filled ↑", 1),
        "mse_filled": ("MSE × 10⁴, filled ↓", 1e4),
        "ssim_filled": ("SSIM × 10², filled ↑", 1e2),
        "lpips_filled": ("LPIPS × 10³, filled ↓", 1e3),
        "clip": ("CLIP whole ↑", 1),
        "clip_inside": ("CLIP edited ↑", 1),
        "success": ("success % ↑", 1e2),
        "rows": ("rows", 1),
        "seconds": ("seconds", 1),
    }
)


def summarize(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, Summary]:
    """A summary of each method, without the metrics that have no values.

    Besides the metrics it has the gain in psnr over ddim (`gain`, paired case by case), the success with each kind of
    edit (`success_…`) and the number of `cases`.
    """
    summaries: dict[str, Summary] = {}
    baseline = {row["case"]: row for row in rows if row["method"] == "ddim"}
    for name in methods:
        by_case = {row["case"]: row for row in rows if row["method"] == name}
        summary = {metric: interval(row.get(metric) for row in by_case.values()) for metric in METRICS}
        summary["gain"] = interval(difference(row, baseline.get(case, {}), "psnr") for case, row in by_case.items())
        for kind in dict.fromkeys(row["kind"] for row in by_case.values()):
            successes = [row.get("success") for row in by_case.values() if row["kind"] == kind]
            summary[f"success_{kind}"] = interval(successes)
        measured = {metric: value for metric, value in summary.items() if not math.isnan(value[0])}
        summaries[name] = {**measured, "cases": (len(by_case), 0)}
    return summaries


def difference(a: Row, b: Row, metric: str) -> float:
    """The difference of a metric of two rows; NaN where one of them does not have it."""
    x, y = a.get(metric), b.get(metric)
    return math.nan if x is None or y is None else x - y


def markdown_tables(summaries: Mapping[str, Summary]) -> str:
    """The summaries in markdown: a table of the metrics, and one of the success with each kind of edit."""
    columns = {key: column for key, column in COLUMNS.items() if any(key in summary for summary in summaries.values())}
    kinds = list(dict.fromkeys(key for summary in summaries.values() for key in summary if key.startswith("success_")))
    lines = table_lines(
        [title for title, _ in columns.values()],
        summaries,
        lambda summary: [format_cell(summary, key, factor) for key, (_, factor) in columns.items()],
    )
    if kinds:
        names = [key.removeprefix("success_") for key in kinds]
        lines += table_lines(
            [f"success %: {names[0]}", *names[1:]],
            summaries,
            lambda summary: [format_cell(summary, key, 1e2) for key in kinds],
        )
    return "\n".join(lines)


def table_lines(
    titles: Sequence[str], summaries: Mapping[str, Summary], cells: Callable[[Summary], Sequence[str]]
) -> list[str]:
    """The lines of a markdown table with a row for each method, and an empty line after it."""
    head = [f"| method | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    return [*head, *(f"| {name} | {' | '.join(cells(summary))} |" for name, summary in summaries.items()), ""]


def format_cell(summary: Summary, metric: str, factor: float) -> str:
    """A mean and the half of its interval, with three significant digits; a dash where there is none."""
    if metric not in summary:
        return "–"
    mean, half = (value * factor for value in summary[metric])
    digits = max(0, 2 - len(str(int(abs(mean)))) + 1)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def contact_sheet(folder: Path, cases: Sequence[Case], methods: Sequence[str]) -> Image.Image:
    """A column for each case: its photograph, and below it the picture that each method made of it."""
    panels = [(read_image(case.picture), f"{case.source} -> {case.target}") for case in cases]
    for name in methods:
        for case in cases:
            panels.append((read_image(result_files(folder).picture_file(case, name)), name))
    return viz.grid(panels, columns=len(cases))


def json_line(summaries: Mapping[str, Summary]) -> str:
    """The means in one line of JSON: the number of cases, and keys such as "direct_psnr" (method_metric)."""
    cases = max((int(summary["cases"][0]) for summary in summaries.values()), default=0)
    means = {
        f"{name}_{metric}": float(f"{value[0]:.4g}")
        for name, summary in summaries.items()
        for metric, value in summary.items()
        if metric != "cases"
    }
    return json.dumps({"cases": cases} | means)
