"""The results of a sweep to look at: table, trade-off, and a contact sheet and a chart for each pair of axes."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
import pyarrow
import pyarrow.parquet
from matplotlib.figure import Figure
from PIL import Image

from minip2p.io import png, viz
from minip2p.io.files import atomic_write, write_text
from minip2p.io.tables import Rows, to_csv
from minip2p.metrics.image import mean, present
from minip2p.sweeps.grid import AXES, Grid, label
from minip2p.sweeps.sweep import source_name
from minip2p.sweeps.tradeoff import Tradeoff, averages, save_chart, setting_axes, title, write_tradeoff

CHART_COLUMNS = 3  # figures side by side in a chart

# Figures of which more (1) or less (-1) is better. All others are neither: an edit changes the picture inside of its
# mask, and so as a whole.
BETTER: Mapping[str, int] = MappingProxyType(
    {
        "success": 1,
        "clip": 1,
        "clip_inside": 1,
        "mask_iou": 1,
        "psnr_outside": 1,
        "ssim_outside": 1,
        "mse_outside": -1,
    }
)


def write_results(folder: Path, grid: Grid, rows: Rows, parameters: str) -> list[Path]:
    """Writes table.csv and table.parquet, tradeoff.png where settings are compared, and sheet-A-B.png and
    chart-A-B.png for each pair of axes A and B. Returns their paths.

    parameters: the settings of the sweep, the text of each PNG's `parameters`.
    """
    paths = result_paths(folder, grid)
    text_axes = {name for name in AXES if not all(isinstance(row[name], int | float) for row in rows)}
    flat_rows = [{name: label(value) if name in text_axes else value for name, value in row.items()} for row in rows]
    write_text(paths[0], to_csv(flat_rows))
    with atomic_write(paths[1]) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat_rows), partial)
    if setting_axes(grid):
        write_tradeoff(paths[2], grid, rows, f"{parameters}, Chart: trade-off")
    best = Tradeoff.of(grid, rows).best
    shown = {name: values[0] for name, values in grid.axes.items()} | dict(best.values if best else {})
    for a, b in axis_pairs(grid):
        sheet = contact_sheet(folder, grid, rows, (a, b), shown)
        name = pair_name(a, b)
        png.write_pngs([(folder / f"sheet-{name}.png", sheet, f"{parameters}, Sheet: {name}")])
        write_chart(folder / f"chart-{name}.png", grid, rows, (a, b), f"{parameters}, Chart: {name}")
    return paths


def result_paths(folder: Path, grid: Grid) -> list[Path]:
    """The files that `write_results` writes."""
    names = [pair_name(a, b) for a, b in axis_pairs(grid)]
    tradeoff = [folder / "tradeoff.png"] if setting_axes(grid) else []
    pictures = [folder / f"{kind}-{name}.png" for name in names for kind in ("sheet", "chart")]
    return [folder / "table.csv", folder / "table.parquet", *tradeoff, *pictures]


def axis_pairs(grid: Grid) -> list[tuple[str, str | None]]:
    """Every pair of axes that are compared; (axis, None) where there is only one."""
    compared = grid.compared
    return [(compared[0], None)] if len(compared) == 1 else list(itertools.combinations(compared, 2))


def pair_name(a: str, b: str | None) -> str:
    """A pair of axes in the name of a file."""
    return f"{a}-{b}" if b else a


def contact_sheet(
    folder: Path, grid: Grid, rows: Rows, pair: tuple[str, str | None], shown: Mapping[str, Any]
) -> Image.Image:
    """The pictures of a pair of axes, the first down and the second across, each line after its source.

    shown: the values of all other axes, which the title names. A single axis is across, but the seed is down, since
    each seed has a source. Raises ValueError for a picture that cannot be read.
    """
    a, b = pair
    fixed = {name: value for name, value in shown.items() if name not in pair}
    cells = [row for row in rows if all(row[name] == value for name, value in fixed.items())]
    per_line = len(grid.axes[b]) if b else 1 if a == "seed" else len(cells)
    panels = []
    for start in range(0, len(cells), per_line):
        line = cells[start : start + per_line]
        source = f"source: {grid.source}" + (f", seed {line[0]['seed']}" if a == "seed" else "")
        panels.append((read_panel(folder / source_name(line[0]["seed"])), source))
        for row in line:
            caption = ", ".join(f"{name} {label(row[name])}" for name in pair if name)
            panels.append((read_panel(folder / row["picture"]), caption))
    others = [f"{name} {label(fixed[name])}" for name in grid.compared if name in fixed]
    text = f"all with {', '.join(others)}" if others else ""
    return viz.grid(panels, columns=per_line + 1, title=text)


def read_panel(file: Path) -> Image.Image:
    """A picture of the sweep. Raises ValueError where it cannot be read."""
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except OSError:
        raise ValueError(f"{file}: is not a complete picture: remove it to run its seed again") from None


def write_chart(path: Path, grid: Grid, rows: Rows, pair: tuple[str, str | None], parameters: str) -> None:
    """Draws a heat map of each figure over a pair of axes, the first down and the second across, with matplotlib.

    Bright is better wherever the title has an arrow; figures that are neither good nor bad are grey, and a figure
    whose written values are all equal has no colour.
    """
    a, b = pair
    names = [name for name in rows[0] if name not in (*AXES, "cell", "picture") and present(row[name] for row in rows)]
    figures = sorted(names, key=lambda name: [*BETTER, name].index(name))
    down, across = grid.axes[a], grid.axes[b] if b else [None]
    lines = -(-len(figures) // CHART_COLUMNS)
    size = max(CHART_COLUMNS * (2.2 + 0.8 * len(across)), 8.5), lines * (1.4 + 0.5 * len(down)) + 0.7
    chart = Figure(figsize=size, layout="constrained")
    plots = list(chart.subplots(lines, CHART_COLUMNS, squeeze=False).flat)
    for name, plot in zip(figures, plots, strict=False):
        draw_heat_map(plot, name, axis_means(rows, name, (a, down), (b, across)))
        plot.set_xticks(range(len(across)), [fill(label(x), 16) if b else "" for x in across])
        plot.set_yticks(range(len(down)), [fill(label(y), 16) for y in down])
        plot.set(xlabel=b or "", ylabel=a)
    for plot in plots[len(figures) :]:
        plot.set_visible(False)
    chart.suptitle(
        f"{averages(grid, [name for name in pair if name])}\n"
        "↑ more is better, ↓ less is better: bright is better in both. Grey: neither good nor bad. –: not measured",
        fontsize=10,
    )
    save_chart(chart, path, parameters)


def draw_heat_map(plot: Any, figure: str, means: np.ndarray) -> None:
    """Draws the means of a figure, down × across, into a plot of matplotlib."""
    better = BETTER.get(figure, 0)
    texts = np.array([["–" if np.isnan(value) else f"{value:.3g}" for value in line] for line in means])
    is_constant = len({text for text in texts.flat if text != "–"}) < 2
    colours = matplotlib.colormaps[{1: "viridis", -1: "viridis_r", 0: "Greys"}[better]]
    low, high = (0, 1) if is_constant else (np.nanmin(means), np.nanmax(means))
    shares = np.full(means.shape, np.nan) if is_constant else (means - low) / (high - low)
    shares = 0.15 + 0.6 * shares if better == 0 else shares
    plot.imshow(np.ma.masked_invalid(shares), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (y, x), text in np.ndenumerate(texts):
        rgb = (1, 1, 1) if np.isnan(shares[y, x]) else colours(shares[y, x])[:3]
        ink = "white" if np.dot(rgb, (0.299, 0.587, 0.114)) < 0.5 else "black"
        plot.text(x, y, text, ha="center", va="center", color=ink)
    arrow = {1: " ↑", -1: " ↓", 0: ""}[better]
    plot.set_title(title(figure) + arrow + (" (all equal)" if is_constant and means.size > 1 else ""), fontsize=10)


def axis_means(
    rows: Rows, figure: str, down: tuple[str, Sequence[Any]], across: tuple[str | None, Sequence[Any]]
) -> np.ndarray:
    """The mean of a figure over all other axes, for each value of two axes (name, values): down × across. An axis
    without a name has a single value, which all rows have."""
    (a, down_values), (b, across_values) = down, across
    return np.array(
        [
            [mean(row[figure] for row in rows if row[a] == y and (b is None or row[b] == x)) for x in across_values]
            for y in down_values
        ]
    )
