"""The results of a sweep: its table, its contact sheets and its charts."""

import csv

import matplotlib
import numpy as np
import pyarrow.parquet
import pytest
from kills import Killed, kill_at_replacement
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from minip2p.cli import show
from minip2p.sweeps import charts
from minip2p.sweeps.grid import Grid, label
from minip2p.sweeps.sweep import sweep

PARAMETERS = "a cat on the beach\nSteps: 2, Sampler: DDIM"


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def grid():
    return Grid.from_fields(
        {
            "source": "a cat on the beach",
            "target": ["a tiger on the beach", "a cat on the beach at night"],
            "seed": 1,
            "cross": [0.4, {"default_": 0.8, "the": 0.2}],
            "self": [0.0, 1.0],
            "steps": 2,
            "size": [64, 72],
        }
    )


@pytest.fixture(scope="module")
def swept(model, grid, tmp_path_factory):
    """The folder and the rows of a finished sweep. Tests do not change them."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(model, grid, folder)


@pytest.fixture
def folder(swept, tmp_path):
    """A copy of that folder's pictures."""
    for file in swept[0].glob("*.png"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_the_results_are_a_tidy_table_contact_sheets_and_charts(grid, swept, folder):
    _, rows = swept
    paths = charts.write_results(folder, grid, rows, PARAMETERS)
    pairs = ["target-cross", "target-self", "cross-self"]
    pictures = [f"{kind}-{pair}.png" for pair in pairs for kind in ("sheet", "chart")]
    assert [path.name for path in paths] == ["table.csv", "table.parquet", "tradeoff.png", *pictures]
    assert paths == charts.result_paths(folder, grid) and all(path.exists() for path in paths)
    with paths[0].open(encoding="utf-8") as file:
        csv_rows = list(csv.DictReader(file))
    parquet_rows = pyarrow.parquet.read_table(paths[1]).to_pylist()
    assert len(csv_rows) == len(parquet_rows) == 8 and list(csv_rows[0]) == list(parquet_rows[0])
    for row, text, cell in zip(rows, csv_rows, parquet_rows, strict=True):
        assert float(text["psnr"]) == cell["psnr"] == row["psnr"]
        assert text["cross"] == cell["cross"] == label(row["cross"])
    assert min(pixels(path).std() for path in paths[2:]) > 10
    for path in paths[2:]:
        assert show.read_settings(path).startswith(PARAMETERS + ", ")


def test_a_contact_sheet_has_the_first_axis_down_and_the_second_across(grid, swept):
    folder, rows = swept
    shown = {name: values[0] for name, values in grid.axes.items()} | {"target": grid.axes["target"][1]}
    sheet = np.asarray(charts.contact_sheet(folder, grid, rows, ("cross", "self"), shown))

    def panel_at(name):
        """Row and column of a picture in the sheet, counted in panels."""
        panel = np.asarray(Image.open(folder / name).resize((288, 256), Image.Resampling.LANCZOS))
        windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (256, 288))
        candidates = np.argwhere((windows[:, :, 0, :8] == panel[0, :8, 0]).all(-1))
        return [(y // 256, x // 288) for y, x in candidates if (sheet[y : y + 256, x : x + 288] == panel).all()]

    names = [[rows[4 + 2 * y + x]["picture"] for x in (0, 1)] for y in (0, 1)]  # the second target
    assert [[panel_at(name) for name in line] for line in names] == [[[(0, 1)], [(0, 2)]], [[(1, 1)], [(1, 2)]]]
    assert panel_at("source-seed1.png") == [(0, 0), (1, 0)]


def test_a_contact_sheet_says_what_is_fixed_and_has_each_seeds_source(tmp_path, monkeypatch):
    grid = Grid.from_fields({"source": "a", "target": "b", "seed": [1, 2], "cross": [0.4, 0.8], "self": [0.1, 0.2]})
    rows = [{**cell, "picture": f"{n}.png"} for n, cell in enumerate(cell for s in (1, 2) for cell in grid.cells(s))]
    for name in ("source-seed1.png", "source-seed2.png", *(row["picture"] for row in rows)):
        Image.new("RGB", (8, 8), "red" if name == "source-seed2.png" else "black").save(tmp_path / name)
    sheets = []
    monkeypatch.setattr(charts.viz, "grid", lambda panels, **options: sheets.append((panels, options)))
    shown = {"seed": 1, "target": "b", "cross": 0.4, "self": 0.2}
    charts.contact_sheet(tmp_path, grid, rows, ("seed", "cross"), shown)
    ((panels, options),) = sheets
    assert options == {"columns": 3, "title": "all with self 0.2"}
    assert [picture.getpixel((0, 0))[0] for picture, _ in panels] == [0, 0, 0, 255, 0, 0]
    assert [caption for _, caption in panels] == [
        "source: a, seed 1",
        "seed 1, cross 0.4",
        "seed 1, cross 0.8",
        "source: a, seed 2",
        "seed 2, cross 0.4",
        "seed 2, cross 0.8",
    ]
    charts.contact_sheet(tmp_path, grid, rows, ("seed", None), shown)
    assert [caption for _, caption in sheets[1][0]] == ["source: a, seed 1", "seed 1", "source: a, seed 2", "seed 2"]
    charts.contact_sheet(tmp_path, grid, rows, ("cross", None), shown)
    assert sheets[2][1] == {"columns": 3, "title": "all with seed 1, self 0.2"}


def test_contact_sheets_show_the_recommended_setting_of_all_other_axes(tmp_path, monkeypatch):
    """The judge prefers cross .8 and self .2; without a judge, the first values are shown."""
    grid = Grid.from_fields({"source": "a", "target": "b", "seed": [1, 2], "cross": [0.4, 0.8], "self": [0.1, 0.2]})
    rows = [{**cell, "cell": 0, "picture": "", "psnr_outside": 20.0} for seed in (1, 2) for cell in grid.cells(seed)]
    judged = [row | {"success": float(row["cross"] == 0.8 and row["self"] == 0.2)} for row in rows]
    for name in ("write_tradeoff", "write_chart"):
        monkeypatch.setattr(charts, name, lambda *_: None)
    monkeypatch.setattr(charts.png, "write_pngs", lambda files: None)
    for table, expected in ((judged, (1, 0.8, 0.2)), (rows, (1, 0.4, 0.1))):
        fixed = []
        monkeypatch.setattr(charts, "contact_sheet", lambda *arguments, fixed=fixed: fixed.append(arguments[-1]))
        charts.write_results(tmp_path, grid, table, PARAMETERS)
        assert len(fixed) == 3
        assert all((shown["seed"], shown["cross"], shown["self"]) == expected for shown in fixed)


def test_a_chart_has_the_mean_of_each_pair_of_values_at_its_place(tmp_path, monkeypatch):
    """Every number that matplotlib is told to write: cross down, self across, the mean over the seeds."""
    grid = Grid.from_fields(
        {"source": "a", "target": "b", "seed": [1, 2], "cross": [0.4, 0.8], "self": [0.1, 0.2, 0.3]}
    )
    rows = [
        {**cell, "cell": 0, "picture": "", "psnr": 100 * cell["cross"] + 10 * cell["self"] + cell["seed"]}
        for seed in (1, 2)
        for cell in grid.cells(seed)
    ]
    written = {}
    monkeypatch.setattr(Axes, "text", lambda ax, x, y, text, **style: written.__setitem__((y, x), text))
    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda chart, text, **style: titles.append(text))
    charts.write_chart(tmp_path / "x.png", grid, rows, ("cross", "self"), PARAMETERS)
    assert titles[0].startswith("each is the mean over seed (2 values)\n")
    assert written == {(0, 0): "42.5", (0, 1): "43.5", (0, 2): "44.5", (1, 0): "82.5", (1, 1): "83.5", (1, 2): "84.5"}


@pytest.mark.parametrize(
    "figure, means, shares, name",
    [
        ("psnr_outside", [[1, 2], [3, 4]], [0, 1 / 3, 2 / 3, 1], "PSNR outside ↑"),
        ("mse_outside", [[4, 3], [2, 1]], [0, 1 / 3, 2 / 3, 1], "MSE outside ↓"),
        ("success", [[0.2, 0.2], [0.2, np.nan]], [np.nan] * 4, "success ↑ (all equal)"),
        ("success", [[0.20001, 0.2]], [np.nan] * 2, "success ↑ (all equal)"),  # as they are written
        ("success", [[0.2]], [np.nan], "success ↑"),
    ],
)
def test_bright_is_better_and_equal_values_have_no_colour(figure, means, shares, name):
    plot = Figure().subplots()
    charts.draw_heat_map(plot, figure, np.array(means))
    (image,) = plot.images
    colours = image.cmap(image.norm(image.get_array()))[..., :3].reshape(-1, 3)
    expected = [(0, 0, 0) if np.isnan(share) else matplotlib.colormaps["viridis"](float(share))[:3] for share in shares]
    assert plot.get_title() == name
    backgrounds = [(1, 1, 1) if np.isnan(share) else colour for share, colour in zip(shares, colours, strict=True)]
    inks = ["white" if np.dot(colour, (0.299, 0.587, 0.114)) < 0.5 else "black" for colour in backgrounds]
    assert [text.get_color() for text in plot.texts] == inks
    if np.isnan(shares).all():
        assert np.ma.getmaskarray(image.get_array()).all()
    else:
        assert np.allclose(colours, expected, atol=0.01)


def test_a_figure_that_is_neither_good_nor_bad_is_grey_and_no_arrow_says_better():
    plot = Figure().subplots()
    charts.draw_heat_map(plot, "psnr_inside", np.array([[10.0, 30.0]]))
    (image,) = plot.images
    colours = image.cmap(image.norm(image.get_array()))[0, :, :3]
    assert plot.get_title() == "PSNR inside" and np.ptp(colours, axis=1).max() < 0.01
    assert colours.min() > 0.2  # even the darkest is not black


def test_a_damaged_picture_is_named_when_the_sheets_are_made(grid, swept, folder):
    (folder / "00000.png").write_bytes((folder / "00000.png").read_bytes()[:100])
    with pytest.raises(ValueError, match="00000.png: is not a complete picture: remove it"):
        charts.write_results(folder, grid, swept[1], PARAMETERS)


def test_results_that_were_killed_while_they_were_written_end_with_the_same_bytes(tmp_path, monkeypatch):
    grid = Grid.from_fields({"source": "a", "target": "b", "cross": [0.4, 0.8]})
    rows = [{**cell, "cell": n, "picture": f"{n}.png", "psnr": 20.0 + n} for n, cell in enumerate(grid.cells(0))]
    Image.new("RGB", (8, 8)).save(tmp_path / "source-seed0.png")
    for n, row in enumerate(rows):
        Image.new("RGB", (8, 8), (80 * n, 0, 0)).save(tmp_path / row["picture"])
    paths = charts.write_results(tmp_path, grid, rows, PARAMETERS)
    expected = [path.read_bytes() for path in paths]
    assert len(paths) == 5
    for moment in range(len(paths)):
        for path in paths:
            path.unlink()
        with monkeypatch.context() as patches, pytest.raises(Killed):
            kill_at_replacement(patches, moment)
            charts.write_results(tmp_path, grid, rows, PARAMETERS)
        assert [path.exists() for path in paths].count(True) == moment
        charts.write_results(tmp_path, grid, rows, PARAMETERS)
        assert [path.read_bytes() for path in paths] == expected
