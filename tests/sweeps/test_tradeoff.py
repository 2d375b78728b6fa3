"""The trade-off of a sweep: its settings, its front, and the setting that it recommends."""

import math
from dataclasses import replace

import pytest
from matplotlib.axes import Axes

from minip2p.cli import show
from minip2p.sweeps import tradeoff
from minip2p.sweeps.grid import Grid
from minip2p.sweeps.tradeoff import Tradeoff

GRID = Grid.from_fields(
    {"source": "a", "target": ["b", "c"], "seed": [1, 2], "cross": [0.2, 0.5, 0.8], "reweight": [{}, {"a": 2.0}]}
)


def rows_of(figures, grid=GRID):
    """A row for each cell. figures(cell) -> its figures."""
    return [{**cell, **figures(cell)} for seed in grid.axes["seed"] for cell in grid.cells(seed)]


def test_a_setting_is_the_mean_over_seeds_and_targets():
    rows = rows_of(
        lambda cell: {
            "success": float(cell["seed"] == 1) if cell["target"] == "b" else None,
            "psnr_outside": 10 * cell["cross"] + cell["seed"],
        }
    )
    result = Tradeoff.of(GRID, rows)
    assert [str(s) for s in result.settings[:2]] == ["cross 0.2, reweight none", "cross 0.2, reweight a=2.0"]
    assert len(result.settings) == 6 and (result.success, result.background) == ("success", "psnr_outside")
    first = result.settings[0]
    assert (first.success, first.background, first.count) == (0.5, 3.5, 2)
    assert first.error == pytest.approx(0.5)  # of (0, 1): their deviation 1 / sqrt(2), over sqrt(2)


def test_the_front_has_what_nothing_beats_and_the_best_keeps_most_within_a_standard_error():
    figures = {0.2: (1.0, 20.0), 0.5: (0.7, 30.0), 0.8: (0.1, 40.0)}  # the first ones are all on the front
    rows = rows_of(
        lambda cell: {
            "success": figures[cell["cross"]][0] - (0.2 if cell["reweight"] else 0),
            "psnr_outside": figures[cell["cross"]][1],
        }
    )
    result = Tradeoff.of(GRID, rows)
    assert [s.values for s in result.front] == [{"cross": cross, "reweight": {}} for cross in figures]
    assert result.best is result.settings[0]
    assert result.recommendation() == (
        "recommended: cross 0.2, reweight none (success 1, PSNR outside 20 dB; 4 edits judged): of the settings whose "
        "success is within a standard error of the highest, 1, the one that keeps most of the background"
    )
    # With a standard error of 0.4 the second is no worse than the first, and it keeps more.
    noisy = [row | {"success": row["success"] + (0.4 if row["seed"] == 1 else -0.4) * 1.7320508} for row in rows]
    best = Tradeoff.of(GRID, noisy).best
    assert best.error == pytest.approx(0.4) and best.values == {"cross": 0.5, "reweight": {}}


def settings_of(figures):
    """A trade-off with a setting for each (success, background), which it names by its place."""
    grid = Grid.from_fields({"source": "a", "target": "b", "self": [n / 100 for n in range(len(figures))]})
    rows = [
        {**cell, "success": success, "psnr_outside": background, "psnr_inside": 10.0}
        for cell, (success, background) in zip(grid.cells(0), figures, strict=True)
    ]
    return grid, rows, Tradeoff.of(grid, rows)


def places(settings):
    return [round(100 * setting.values["self"]) for setting in settings]


def test_of_equals_in_one_figure_the_other_decides():
    _, _, result = settings_of([(0.8, 30.0), (0.9, 30.0), (0.9, 20.0), (0.9, 30.0)])
    assert places(result.front) == [1, 3]  # equals in both are both on the front
    near = replace(result.settings[1], error=0.2)  # 0.8 is within it, and keeps no more
    result = replace(result, settings=[result.settings[0], near, *result.settings[2:]])
    assert places([result.best]) == [1]


def test_without_a_figure_of_the_background_nothing_is_recommended():
    _, _, result = settings_of([(0.8, None), (0.9, None)])
    assert result.best is None and result.front == [] and result.background == "psnr"
    assert "nothing, since a figure of the background is missing" in result.recommendation()


def drawn(monkeypatch, tmp_path, grid, rows):
    """The figure of the plot, and the lines of its list."""
    charts = []
    monkeypatch.setattr(tradeoff, "save_chart", lambda chart, *_: charts.append(chart))
    tradeoff.write_tradeoff(tmp_path / "x.png", grid, rows, "")
    plot, legend = charts[0].axes
    return plot, legend.texts[0].get_text().splitlines()


def test_the_front_comes_first_in_the_list(tmp_path, monkeypatch):
    grid, rows, _ = settings_of([(0.5, 20.0), (0.9, 30.0), (0.4, 10.0), (1.0, 25.0)])
    plot, lines = drawn(monkeypatch, tmp_path, grid, rows)
    assert lines == ["1  self 0.01", "2  ★ self 0.03", "3  self 0.0", "4  self 0.02"]
    assert {text.get_text(): text.xy for text in plot.texts} == {
        "1": (30.0, 0.9),
        "2": (25.0, 1.0),
        "3": (20.0, 0.5),
        "4": (10.0, 0.4),
    }
    assert not plot.yaxis_inverted() and plot.get_ylim() == (-0.05, 1.1)


def test_a_long_list_is_cut_and_says_so(tmp_path, monkeypatch):
    grid, rows, _ = settings_of([(n / 100, 30.0 - n) for n in range(27)])
    plot, lines = drawn(monkeypatch, tmp_path, grid, rows)
    assert len(lines) == 25 and lines[-1] == "… and 3 more: see table.csv" and len(plot.texts) == 24


def test_without_a_figure_of_success_less_psnr_inside_is_higher(tmp_path, monkeypatch):
    grid, rows, _ = settings_of([(None, 20.0), (None, 30.0)])
    plot, lines = drawn(monkeypatch, tmp_path, grid, rows)
    assert plot.yaxis_inverted() and lines == ["1  self 0.0", "2  self 0.01"]


def test_clip_stands_in_for_the_judge_and_the_whole_picture_for_a_missing_mask():
    rows = rows_of(lambda cell: {"success": None, "clip": cell["cross"], "psnr_outside": None, "psnr": 20.0})
    result = Tradeoff.of(GRID, rows)
    assert (result.success, result.background) == ("clip", "psnr") and result.best.values["cross"] == 0.8


def test_without_a_figure_of_success_nothing_is_recommended():
    rows = rows_of(lambda cell: {"psnr_outside": 20.0, "psnr_inside": 10.0})
    result = Tradeoff.of(GRID, rows)
    assert result.best is None and result.front == [] and all(math.isnan(s.success) for s in result.settings)
    assert result.recommendation().startswith("recommended: nothing, since a figure of success is missing")
    seeds = Grid.from_fields({"source": "a", "target": "b", "seed": [1, 2]})
    only = rows_of(lambda cell: {"success": 1.0, "psnr_outside": 20.0}, seeds)
    assert "the grid compares no settings" in Tradeoff.of(seeds, only).recommendation()


@pytest.mark.parametrize("success", [0.0, 0.25])
def test_where_no_edit_succeeded_nothing_is_recommended(tmp_path, monkeypatch, success):
    grid, rows, _ = settings_of([(0.0, 20.0), (success, 10.0)])
    result, (_, lines) = Tradeoff.of(grid, rows), drawn(monkeypatch, tmp_path, grid, rows)
    if success:
        assert result.best.values == {"self": 0.01} and "★ self 0.01" in "".join(lines)
    else:
        assert result.best is None and "★" not in "".join(lines)
        assert result.recommendation().startswith("recommended: nothing, since no edit succeeded")
    clip = [{**row, "clip": row["success"], "success": None} for row in rows]  # a similarity of 0 is no failure
    assert Tradeoff.of(grid, clip).best is not None


def test_a_setting_without_a_success_is_not_recommended_for_its_background():
    """It is within a standard error of the highest, where one edit of four succeeded."""
    grid = Grid.from_fields({"source": "a", "target": "b", "seed": [1, 2, 3, 4], "cross": [0.2, 0.8]})
    rows = rows_of(
        lambda cell: {
            "success": float((cell["seed"], cell["cross"]) == (1, 0.2)),
            "psnr_outside": 10 * cell["cross"],
        },
        grid,
    )
    best = Tradeoff.of(grid, rows).best
    assert best.values == {"cross": 0.2} and best.success - best.error == 0


def test_one_edit_a_setting_is_named():
    grid = Grid.from_fields({"source": "a", "target": "b", "cross": [0.2, 0.8]})
    rows = rows_of(lambda cell: {"success": 1.0, "psnr_outside": 20 + cell["cross"]}, grid)
    line = Tradeoff.of(grid, rows).recommendation()
    assert line.startswith("recommended: cross 0.8 (success 1,")
    assert line.endswith("; one edit a setting says little, more seeds say more")


@pytest.mark.parametrize("has_success", [True, False])
def test_the_plot_numbers_and_lists_every_setting_and_has_its_parameters(tmp_path, monkeypatch, has_success):
    def figures(cell):
        background = None if cell["reweight"] else 20 + 10 * cell["cross"]
        success = {"success": 1 - cell["cross"] / 2} if has_success else {}
        return success | {"psnr_outside": background, "psnr_inside": 10 + cell["cross"]}

    numbers, lists = [], []
    monkeypatch.setattr(Axes, "annotate", lambda plot, text, *_, **__: numbers.append(text))
    monkeypatch.setattr(Axes, "text", lambda plot, x, y, text, **__: lists.append(text))
    tradeoff.write_tradeoff(tmp_path / "x.png", GRID, rows_of(figures), "a\nSteps: 2")
    star = "★ " if has_success else ""
    assert len(numbers) == 3 and len(lists[0].splitlines()) == 6
    assert lists[0].startswith(f"1  {star}cross 0.2, reweight none\n")
    assert lists[0].count("(not measured)") == 3  # a mask without an outside
    assert show.read_settings(tmp_path / "x.png") == "a\nSteps: 2"
