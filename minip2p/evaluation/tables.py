"""What a benchmark of edits says: means with their intervals, as tables and as a line of JSON; a sheet to look at."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from minip2p.evaluation.edit_benchmark import METRICS, Row, picture_file
from minip2p.evaluation.pie_bench import Case
from minip2p.io import viz
from minip2p.io.images import read_image
from minip2p.metrics.image import interval


def summary(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """By method, of each figure the mean and the half of its 95 % confidence interval; of psnr also the gain over ddim
    (`gain`), paired case by case; and the success with each kind of edit."""
    made = {}
    for name in methods:
        mine = {row["case"]: row for row in rows if row["method"] == name}
        base = {row["case"]: row for row in rows if row["method"] == "ddim"}
        found = {key: interval(row.get(key) for row in mine.values()) for key in METRICS}
        found["gain"] = interval(difference(row, base.get(case, {}), "psnr") for case, row in mine.items())
        for kind in dict.fromkeys(row["kind"] for row in mine.values()):
            found[f"success_{kind}"] = interval(row.get("success") for row in mine.values() if row["kind"] == kind)
        made[name] = {key: value for key, value in found.items() if not math.isnan(value[0])} | {
            "cases": (len(mine), 0)
        }
    return made


def difference(a: Row, b: Row, figure: str) -> float:
    x, y = a.get(figure), b.get(figure)
    return math.nan if x is None or y is None else x - y


COLUMNS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {  # figure -> title, factor
        "structure": ("structure × 10³ ↓", 1e3),
        "psnr": ("PSNR ↑", 1),
        "gain": ("… over ddim", 1),
        "mse": ("MSE × 10⁴ ↓", 1e4),
        "ssim": ("SSIM × 10² ↑", 1e2),
        "psnr_kept": ("PSNR of other things ↑", 1),
        "psnr_filled": ("PSNR, filled ↑", 1),
        "clip": ("CLIP whole ↑", 1),
        "clip_inside": ("CLIP edited ↑", 1),
        "success": ("success % ↑", 1e2),
        "rows": ("rows", 1),
        "seconds": ("seconds", 1),
    }
)


def table(made: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """The summary in markdown: two tables, the figures and the success with each kind."""

    def lines(titles: Sequence[str], cells: Callable[[Mapping[str, tuple[float, float]]], Sequence[str]]) -> list[str]:
        head = [f"| method | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
        return [*head, *(f"| {name} | {' | '.join(cells(found))} |" for name, found in made.items()), ""]

    def cell(found: Mapping[str, tuple[float, float]], key: str, factor: float) -> str:
        if key not in found:
            return "–"
        middle, half = (value * factor for value in found[key])
        digits = max(0, 2 - len(str(int(abs(middle)))) + 1)
        return f"{middle:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")

    shown = {key: named for key, named in COLUMNS.items() if any(key in found for found in made.values())}
    kinds = list(dict.fromkeys(key for found in made.values() for key in found if key.startswith("success_")))
    out = lines(
        [title for title, _ in shown.values()], lambda found: [cell(found, k, f) for k, (_, f) in shown.items()]
    )
    if kinds:
        names = [key.removeprefix("success_") for key in kinds]
        out += lines([f"success %: {names[0]}", *names[1:]], lambda found: [cell(found, key, 1e2) for key in kinds])
    return "\n".join(out)


def sheet(folder: Path, cases: Sequence[Case], methods: Sequence[str]) -> Image.Image:
    """Some cases, a column each: the photographs, and a row for each method."""
    panels = [(read_image(case.picture), f"{case.source} -> {case.target}") for case in cases]
    for name in methods:
        for case in cases:
            panels.append((read_image(picture_file(folder, case, name)), name))
    return viz.grid(panels, columns=len(cases))


def as_json(made: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """One line: cases, and a key for each figure of each method, "direct_psnr"."""
    count = max((int(found["cases"][0]) for found in made.values()), default=0)
    keys = {
        f"{name}_{key}": float(f"{value[0]:.4g}")
        for name, found in made.items()
        for key, value in found.items()
        if key != "cases"
    }
    return json.dumps({"cases": count} | keys)
