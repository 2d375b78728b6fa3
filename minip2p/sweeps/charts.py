"""The results of a sweep to look at: its table, and a contact sheet and a chart for each pair of axes."""

import itertools
from pathlib import Path
from textwrap import fill

import numpy as np
import pyarrow
import pyarrow.parquet
from matplotlib.figure import Figure
from PIL import Image

from minip2p.io import png, viz
from minip2p.io.files import atomic_write, write_text
from minip2p.io.tables import Rows, to_csv
from minip2p.metrics.image import mean
from minip2p.sweeps.grid import AXES, Grid, label

CHART_COLUMNS = 3  # figures side by side in a chart


def write_results(folder: Path, grid: Grid, rows: Rows) -> list[Path]:
    """Writes table.csv and table.parquet, and sheet-A-B.png and chart-A-B.png for each pair of axes A and B. Returns
    their paths."""
    paths = result_paths(folder, grid)
    text_axes = {name for name in AXES if not all(isinstance(row[name], int | float) for row in rows)}
    flat_rows = [{name: label(value) if name in text_axes else value for name, value in row.items()} for row in rows]
    write_text(paths[0], to_csv(flat_rows))
    with atomic_write(paths[1]) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat_rows), partial)
    for a, b in axis_pairs(grid):
        sheet = contact_sheet(folder, grid, rows, a, b)
        png.write_pngs([(folder / f"sheet-{pair_name(a, b)}.png", sheet, f"{a} by {b}" if b else a)])
        write_chart(folder / f"chart-{pair_name(a, b)}.png", grid, rows, a, b)
    return paths


def result_paths(folder: Path, grid: Grid) -> list[Path]:
    """The files that `write_results` writes."""
    names = [pair_name(a, b) for a, b in axis_pairs(grid)]
    pictures = [folder / f"{kind}-{name}.png" for name in names for kind in ("sheet", "chart")]
    return [folder / "table.csv", folder / "table.parquet", *pictures]


def axis_pairs(grid: Grid) -> list[tuple[str, str | None]]:
    """Every pair of axes that are compared; (axis, None) where there is only one."""
    compared = grid.compared
    return [(compared[0], None)] if len(compared) == 1 else list(itertools.combinations(compared, 2))


def pair_name(a: str, b: str | None) -> str:
    """A pair of axes in the name of a file."""
    return f"{a}-{b}" if b else a


def contact_sheet(folder: Path, grid: Grid, rows: Rows, a: str, b: str | None) -> Image.Image:
    """The pictures of two axes, the first down and the second across; all other axes at their first value. Raises
    ValueError for a picture that cannot be read."""
    fixed = {name: values[0] for name, values in grid.axes.items() if name not in (a, b)}
    panels = []
    for row in rows:
        if any(row[name] != value for name, value in fixed.items()):
            continue
        caption = ", ".join(f"{name} {label(row[name])}" for name in (a, b) if name)
        file = folder / row["picture"]
        try:
            with Image.open(file) as picture:
                panels.append((picture.convert("RGB"), caption))
        except OSError:
            raise ValueError(f"{file}: is not a complete picture: remove it to run its seed again") from None
    return viz.grid(panels, columns=len(grid.axes[b]) if b else len(panels))


def write_chart(path: Path, grid: Grid, rows: Rows, a: str, b: str | None) -> None:
    """Draws a heat map of each figure over two axes, a down and b across, with matplotlib."""
    figures = [name for name in rows[0] if name not in (*AXES, "cell", "picture")]
    down, across = grid.axes[a], grid.axes[b] if b else [None]
    lines = -(-len(figures) // CHART_COLUMNS)
    size = CHART_COLUMNS * (2.2 + 0.8 * len(across)), lines * (1.4 + 0.5 * len(down))
    chart = Figure(figsize=size, layout="constrained")
    plots = list(chart.subplots(lines, CHART_COLUMNS, squeeze=False).flat)
    for name, plot in zip(figures, plots, strict=False):
        means = axis_means(rows, name, (a, down), (b, across))
        plot.imshow(means, cmap="viridis", aspect="auto")
        middle = np.nanmean([np.nanmin(means), np.nanmax(means)]) if np.isfinite(means).any() else 0
        for (y, x), value in np.ndenumerate(means):
            ink = "white" if value <= middle else "black"  # NaN has no colour behind it, and its dash is black
            plot.text(x, y, "–" if np.isnan(value) else f"{value:.3g}", ha="center", va="center", color=ink)
        plot.set_title(name.replace("_", " "))
        plot.set_xticks(range(len(across)), [fill(label(x), 16) if b else "" for x in across])
        plot.set_yticks(range(len(down)), [fill(label(y), 16) for y in down])
        plot.set(xlabel=b or "", ylabel=a)
    for plot in plots[len(figures) :]:
        plot.set_visible(False)
    with atomic_write(path) as partial:
        chart.savefig(partial, format="png", dpi=110, metadata={"Software": None})


def axis_means(rows: Rows, figure: str, down: tuple[str, list], across: tuple[str | None, list]) -> np.ndarray:
    """The mean of a figure over all other axes, for each value of two axes (name, values): down × across. An axis
    without a name has a single value, which all rows have."""
    (a, down_values), (b, across_values) = down, across
    return np.array(
        [
            [mean(row[figure] for row in rows if row[a] == y and (b is None or row[b] == x)) for x in across_values]
            for y in down_values
        ]
    )
