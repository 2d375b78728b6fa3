"""What a sweep recommends: how often each setting succeeds, against how much of the background it keeps.

A setting is one value of every axis but the seed and the target, over which its figures are averaged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from textwrap import shorten
from typing import Any

from matplotlib.figure import Figure

from minip2p.io.files import atomic_write
from minip2p.io.tables import Rows
from minip2p.metrics.image import mean, present
from minip2p.sweeps.grid import Grid, label

REPEATED = ("seed", "target")  # axes over which a setting is averaged
SUCCESS = ("success", "clip")  # figures of success, the best first; higher is better
BACKGROUND = ("psnr_outside", "psnr")  # figures of what is kept, the best first; the second where there is no mask
LISTED = 24  # settings that the plot lists next to it


@dataclass(frozen=True)
class Setting:
    """The means of a setting. values: of the axes that are compared. error: the standard error of `success`, 0 for a
    single edit. count: how many edits `success` is averaged over."""

    values: Mapping[str, Any]
    success: float
    error: float
    background: float
    count: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {label(value)}" for name, value in self.values.items())


@dataclass(frozen=True)
class Tradeoff:
    """All settings of a sweep. success, background: the names of the figures; None where nothing measures success."""

    settings: Sequence[Setting]
    success: str | None
    background: str

    @classmethod
    def of(cls, grid: Grid, rows: Rows) -> "Tradeoff":
        """Averages the rows of a sweep. Without a figure of success, the settings' success is NaN."""

        def first_measured(names: Sequence[str]) -> str | None:
            return next((name for name in names if present(row.get(name) for row in rows)), None)

        success, background = first_measured(SUCCESS), first_measured(BACKGROUND) or BACKGROUND[-1]
        names = setting_axes(grid)
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            groups.setdefault(repr([row[name] for name in names]), []).append(row)
        settings = []
        for group in groups.values():
            scores = [] if success is None else present(row.get(success) for row in group)
            error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
            values = {name: group[0][name] for name in names}
            kept_background = mean(row.get(background) for row in group)
            settings.append(Setting(values, mean(scores), error, kept_background, len(scores)))
        return cls(settings, success, background)

    @property
    def front(self) -> list[Setting]:
        """The settings that no other setting beats: none is as good in both figures and better in one of them."""

        def beats(a: Setting, b: Setting) -> bool:
            at_least = a.success >= b.success and a.background >= b.background
            return at_least and (a.success > b.success or a.background > b.background)

        measured = [s for s in self.settings if not math.isnan(s.success + s.background)]
        return [s for s in measured if not any(beats(other, s) for other in measured)]

    @property
    def none_succeeded(self) -> bool:
        """Whether the judge saw the target in no edit. A similarity has no such zero."""
        return self.success == "success" and max(present(s.success for s in self.settings), default=1) == 0

    @property
    def best(self) -> Setting | None:
        """The recommended setting, by the rule that `recommendation` states.

        A setting at which no edit succeeded is never recommended. None where there is no other, and without a figure of
        success.
        """
        measured = [s for s in self.settings if not math.isnan(s.success + s.background)]
        top, is_share = max(measured, key=lambda s: s.success, default=None), self.success == "success"
        if top is None or self.none_succeeded:
            return None
        near = [s for s in measured if s.success >= top.success - top.error and not (is_share and s.success == 0)]
        return max(near, key=lambda s: (s.background, s.success))

    def recommendation(self) -> str:
        """One line: the recommended setting, its figures, and the rule; or why there is none."""
        best = self.best
        if len(self.settings) < 2:
            return "recommended: nothing, since the grid compares no settings, only seeds and targets"
        if self.none_succeeded:
            return (
                "recommended: nothing, since no edit succeeded (success 0 at every setting): try a lower cross "
                "and self, or another seed"
            )
        if best is None:
            missing = "a figure of success" if self.success is None else "a figure of the background"
            return (
                f"recommended: nothing, since {missing} is missing: the judge of the model that ships or --clip has it"
            )
        top = max(s.success for s in self.front)
        edits = "1 edit" if best.count == 1 else f"{best.count} edits"
        caution = "; one edit a setting says little, more seeds say more" if best.count == 1 else ""
        return (
            f"recommended: {best} ({self.success} {best.success:.3g}, {title(self.background)} {best.background:.3g} "
            f"dB; {edits} judged): of the settings whose {self.success} is within a standard error of the highest, "
            f"{top:.3g}, the one that keeps most of the background{caution}"
        )


def setting_axes(grid: Grid) -> list[str]:
    """The compared axes whose values make a setting."""
    return [name for name in grid.compared if name not in REPEATED]


def title(figure: str) -> str:
    """The name of a figure as the charts write it: "psnr_outside" -> "PSNR outside"."""
    return " ".join(word.upper() if word in ("psnr", "ssim", "mse", "clip") else word for word in figure.split("_"))


def write_tradeoff(path: Path, grid: Grid, rows: Rows, parameters: str) -> None:
    """Draws success against background, a point for each setting. parameters: the text of the PNG's `parameters`.

    The front is a line, the recommended setting a star. Without a figure of success the vertical axis is the change
    inside of the mask, and there is neither.
    """
    tradeoff = Tradeoff.of(grid, rows)
    best, front = tradeoff.best, tradeoff.front
    points = list(tradeoff.settings)
    changes = {}
    if tradeoff.success is None:
        changes = {n: inside_psnr(rows, setting) for n, setting in enumerate(points)}
    heights = [changes.get(n, setting.success) for n, setting in enumerate(points)]

    chart = Figure(figsize=(10.5, 5.6), layout="constrained")
    plot, legend = chart.subplots(1, 2, width_ratios=(3, 2))
    plot.scatter([s.background for s in points], heights, s=36, color="0.65", label="a setting", zorder=2)
    if front and best is not None:
        line = sorted(front, key=lambda s: (s.background, -s.success))
        xs, ys = [s.background for s in line], [s.success for s in line]
        plot.plot(xs, ys, "o-", color="tab:blue", markersize=8, label="best front: no other beats it", zorder=3)
        plot.plot(
            [best.background],
            [best.success],
            "*",
            color="tab:orange",
            mec="white",
            markersize=18,
            label="recommended, on the front",
            zorder=4,
        )
    order = sorted(range(len(points)), key=lambda n: (points[n] not in front, n))
    numbers = {n: place for place, n in enumerate(order, 1) if place <= LISTED}
    places: dict[tuple[str, str], list[int]] = {}
    for n in numbers:
        places.setdefault((f"{points[n].background:.3g}", f"{heights[n]:.3g}"), []).append(n)
    for group in places.values():
        x, y = points[group[0]].background, heights[group[0]]
        if not math.isnan(x + y):
            text = ", ".join(str(numbers[n]) for n in sorted(group, key=lambda n: numbers[n]))
            plot.annotate(text, (x, y), xytext=(5, 6), textcoords="offset points", fontsize=8)
    plot.margins(0.08, 0.12)
    if tradeoff.success == "success":  # a share
        plot.set_ylim(-0.05, 1.1)
    plot.grid(alpha=0.3)
    plot.set_xlabel(f"{title(tradeoff.background)} in dB: background kept, more is better →")
    plot.set_ylabel(
        f"{title(tradeoff.success)}, more is better →" if tradeoff.success else "change inside →  (PSNR inside in dB)"
    )
    if tradeoff.success is None:
        plot.invert_yaxis()
    plot.legend(loc="best", fontsize=8)
    legend.axis("off")
    lines = [f"{numbers[n]}  {list_entry(points[n], heights[n], points[n] is best)}" for n in order[:LISTED]]
    if len(points) > LISTED:
        lines.append(f"… and {len(points) - LISTED} more: see table.csv")
    legend.text(0, 1, "\n".join(lines), va="top", fontsize=8, linespacing=1.5, transform=legend.transAxes)
    name = (
        "Success against background kept"
        if tradeoff.success
        else "Change against background kept; nothing measures success"
    )
    chart.suptitle(f"{name}\n{averages(grid, [*setting_axes(grid)])}", fontsize=11)
    save_chart(chart, path, parameters)


def list_entry(setting: Setting, height: float, is_best: bool) -> str:
    """A setting in the list next to the plot: a star for the recommended one; a remark for one that has no point."""
    has_point = not math.isnan(setting.background + height)
    return f"{'★ ' if is_best else ''}{shorten(str(setting), 56)}{'' if has_point else ' (not measured)'}"


def inside_psnr(rows: Rows, setting: Setting) -> float:
    """The mean PSNR inside of the mask of a setting's edits."""
    return mean(
        row.get("psnr_inside") for row in rows if all(row[name] == value for name, value in setting.values.items())
    )


def averages(grid: Grid, shown: Sequence[str]) -> str:
    """Which axes are averaged where only some are shown."""
    others = [f"{name} ({len(grid.axes[name])} values)" for name in grid.compared if name not in shown]
    return f"each is the mean over {', '.join(others)}" if others else "each is a single edit"


def save_chart(chart: Figure, path: Path, parameters: str) -> None:
    """Writes a chart as a PNG with its settings in the text chunk `parameters`."""
    with atomic_write(path) as partial:
        chart.savefig(partial, format="png", dpi=110, metadata={"Software": None, "parameters": parameters})
