"""The results of a sweep to look at: its table, a contact sheet and a chart for each pair of axes."""

import itertools
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from minip2p.io import png, viz
from minip2p.io.files import atomic_write, write_text
from minip2p.io.tables import Rows, to_csv, write_parquet
from minip2p.metrics.image import mean
from minip2p.sweeps.grid import AXES, Grid, label


def write_results(folder: Path, grid: Grid, rows: Rows) -> list[Path]:
    """Writes table.csv and table.parquet, and sheet-A-B.png and chart-A-B.png for axes A and B. Returns their paths."""
    paths = results(folder, grid)
    said = {name for name in AXES if not all(isinstance(row[name], int | float) for row in rows)}  # in words
    tidy = [{name: label(value) if name in said else value for name, value in row.items()} for row in rows]
    write_text(paths[0], to_csv(tidy))
    write_parquet(paths[1], tidy)
    for a, b in pairs_of(grid):
        name = f"{a}-{b}" if b else a
        png.write_pngs([(folder / f"sheet-{name}.png", sheet(folder, grid, rows, a, b), f"{a} by {b}" if b else a)])
        chart(folder / f"chart-{name}.png", grid, rows, a, b)
    return paths


def results(folder: Path, grid: Grid) -> list[Path]:
    """What `write_results` writes."""
    names = [f"{a}-{b}" if b else a for a, b in pairs_of(grid)]
    drawn = [folder / f"{what}-{name}.png" for name in names for what in ("sheet", "chart")]
    return [folder / "table.csv", folder / "table.parquet", *drawn]


def pairs_of(grid: Grid) -> list[tuple[str, str | None]]:
    """Each pair of axes that are compared; one alone where there is but one."""
    compared = grid.compared
    return [(compared[0], None)] if len(compared) == 1 else list(itertools.combinations(compared, 2))


def sheet(folder: Path, grid: Grid, rows: Rows, a: str, b: str | None) -> Image.Image:
    """The pictures of two axes, the first down and the second across; all others at their first value."""
    shown = [
        row for row in rows if all(row[name] == values[0] for name, values in grid.axes.items() if name not in (a, b))
    ]
    panels = []
    for row in shown:
        caption = ", ".join(f"{name} {label(row[name])}" for name in (a, b) if name)
        try:
            with Image.open(folder / row["picture"]) as picture:
                panels.append((picture.convert("RGB"), caption))
        except OSError:
            raise ValueError(
                f"{folder / row['picture']}: not a whole picture: remove it, and its seed is made again"
            ) from None
    return viz.grid(panels, columns=len(grid.axes[b]) if b else len(panels))


def chart(path: Path, grid: Grid, rows: Rows, a: str, b: str | None) -> None:
    """A heat map of each figure over two axes, the mean over all others. By matplotlib."""
    figures = [name for name in rows[0] if name not in (*AXES, "cell", "picture")]
    across, down = grid.axes[b] if b else [None], grid.axes[a]
    columns = 3
    lines = -(-len(figures) // columns)
    figure = Figure(
        figsize=(columns * (2.2 + 0.8 * len(across)), lines * (1.4 + 0.5 * len(down))), layout="constrained"
    )
    for name, ax in zip(figures, figure.subplots(lines, columns, squeeze=False).flat, strict=False):
        cells = np.array(
            [
                [mean([row[name] for row in rows if row[a] == y and (b is None or row[b] == x)]) for x in across]
                for y in down
            ]
        )
        ax.imshow(cells, cmap="viridis", aspect="auto")
        middle = np.nanmean([np.nanmin(cells), np.nanmax(cells)]) if np.isfinite(cells).any() else 0
        for (y, x), value in np.ndenumerate(cells):
            ink = "white" if value <= middle else "black"  # black for the dash of NaN, on no colour
            ax.text(x, y, "–" if np.isnan(value) else f"{value:.3g}", ha="center", va="center", color=ink)
        ax.set_title(name.replace("_", " "))
        ax.set_xticks(range(len(across)), [fill(label(x), 16) if b else "" for x in across])
        ax.set_yticks(range(len(down)), [fill(label(y), 16) for y in down])
        ax.set(xlabel=b or "", ylabel=a)
    for ax in figure.axes[len(figures) :]:
        ax.set_visible(False)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
