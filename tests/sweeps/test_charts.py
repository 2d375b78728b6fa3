"""The results of a sweep: its table, its contact sheets and its charts."""

import csv

import numpy as np
import pyarrow.parquet
import pytest
from kills import Killed, kill_at_replacement
from matplotlib.axes import Axes
from PIL import Image

from minip2p.sweeps import charts
from minip2p.sweeps.grid import Grid, label
from minip2p.sweeps.sweep import sweep


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
    paths = charts.write_results(folder, grid, rows)
    pairs = ["target-cross", "target-self", "cross-self"]
    pictures = [f"{kind}-{pair}.png" for pair in pairs for kind in ("sheet", "chart")]
    assert [path.name for path in paths] == ["table.csv", "table.parquet", *pictures]
    assert paths == charts.result_paths(folder, grid) and all(path.exists() for path in paths)
    with paths[0].open(encoding="utf-8") as file:
        csv_rows = list(csv.DictReader(file))
    parquet_rows = pyarrow.parquet.read_table(paths[1]).to_pylist()
    assert len(csv_rows) == len(parquet_rows) == 8 and list(csv_rows[0]) == list(parquet_rows[0])
    for row, text, cell in zip(rows, csv_rows, parquet_rows, strict=True):
        assert float(text["psnr"]) == cell["psnr"] == row["psnr"]
        assert text["cross"] == cell["cross"] == label(row["cross"])
    assert min(pixels(path).std() for path in paths[2:]) > 10


def test_a_contact_sheet_has_the_first_axis_down_and_the_second_across(grid, swept):
    folder, rows = swept
    sheet = np.asarray(charts.contact_sheet(folder, grid, rows, "cross", "self"))
    picture = Image.open(folder / rows[3]["picture"])  # the second cross, the second self
    panel = np.asarray(picture.resize((288, 256), Image.Resampling.LANCZOS))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, panel.shape)[:, :, 0]
    assert any(
        np.array_equal(windows[y, x], panel)
        for y in range(windows.shape[0] - 60, windows.shape[0])
        for x in range(windows.shape[1] - 60, windows.shape[1])
    )


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
    charts.write_chart(tmp_path / "x.png", grid, rows, "cross", "self")
    assert written == {(0, 0): "42.5", (0, 1): "43.5", (0, 2): "44.5", (1, 0): "82.5", (1, 1): "83.5", (1, 2): "84.5"}


def test_a_damaged_picture_is_named_when_the_sheets_are_made(grid, swept, folder):
    (folder / "00000.png").write_bytes((folder / "00000.png").read_bytes()[:100])
    with pytest.raises(ValueError, match="00000.png: is not a complete picture: remove it"):
        charts.write_results(folder, grid, swept[1])


def test_results_that_were_killed_while_they_were_written_end_with_the_same_bytes(tmp_path, monkeypatch):
    grid = Grid.from_fields({"source": "a", "target": "b", "cross": [0.4, 0.8]})
    rows = [{**cell, "cell": n, "picture": f"{n}.png", "psnr": 20.0 + n} for n, cell in enumerate(grid.cells(0))]
    for n, row in enumerate(rows):
        Image.new("RGB", (8, 8), (80 * n, 0, 0)).save(tmp_path / row["picture"])
    paths = charts.write_results(tmp_path, grid, rows)
    expected = [path.read_bytes() for path in paths]
    assert len(paths) == 4
    for moment in range(len(paths)):
        for path in paths:
            path.unlink()
        with monkeypatch.context() as patches, pytest.raises(Killed):
            kill_at_replacement(patches, moment)
            charts.write_results(tmp_path, grid, rows)
        assert [path.exists() for path in paths].count(True) == moment
        charts.write_results(tmp_path, grid, rows)
        assert [path.read_bytes() for path in paths] == expected
