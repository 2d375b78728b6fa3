"""Sweeps: every cell is the edit that it says, what the plan predicts is run, and a kill loses nothing."""

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

import minip2p
from minip2p import LocalBlend
from minip2p.attention.contract import SiteFilter
from minip2p.cli import experiments, main
from minip2p.sweeps import charts
from minip2p.sweeps.grid import Grid, label
from minip2p.sweeps.sweep import describe, plan_jobs, sweep
from minip2p.tiny.judge import Judge, pad_picture

FIELDS = {
    "source": "a cat on the beach",
    "target": ["a tiger on the beach", "a cat on the beach at night"],
    "seed": [1, 2],
    "cross": [0.4, {"default_": 0.8, "the": 0.2}],
    "self": [[0.2, 0.6]],
    "steps": 3,
    "size": [64, 72],
}
TOML = """
source = "a cat on the beach"
target = "a tiger on the beach"
seed = [1, 2, 3]
cross = [0.4, 1.0]
self = [0.0, 0.5, 1.0]
blend = ["", "cat:tiger"]
heads = ["all", [0]]
steps = 2
size = [64, 64]
"""


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_grid_is_every_combination_in_order():
    grid = Grid.from_fields(FIELDS)
    assert grid.compared == ["seed", "target", "cross"] and grid.run == {"steps": 3, "size": [64, 72]}
    cells = grid.cells(2)
    assert [(cell["seed"], cell["target"][-5:], label(cell["cross"])) for cell in cells] == [
        (2, "beach", "0.4"),
        (2, "beach", "default_=0.8 the=0.2"),
        (2, "night", "0.4"),
        (2, "night", "default_=0.8 the=0.2"),
    ]
    assert all(cell["self"] == [0.2, 0.6] and cell["heads"] == "all" and cell["reweight"] == {} for cell in cells)


def test_every_cell_is_the_edit_that_it_says(model, tmp_path):
    """Within one grey level: another batch rounds in another way."""
    rows = sweep(model, Grid.from_fields(FIELDS), tmp_path)
    assert [row["cell"] for row in rows] == list(range(8))
    for row in rows:
        cross = row["cross"]
        alone = model.edit(
            FIELDS["source"],
            row["target"],
            seed=row["seed"],
            cross_replace=cross,
            self_replace=(0.2, 0.6),
            steps=3,
            size=(64, 72),
        )
        assert np.abs(pixels(tmp_path / row["picture"]) - np.asarray(alone.image, int)).max() <= 1
        source = pixels(tmp_path / f"source-seed{row['seed']}.png")
        assert np.array_equal(source, np.asarray(alone.source.image))
    assert len({(tmp_path / row["picture"]).read_bytes() for row in rows}) == 8


@pytest.mark.parametrize(
    "fields, options",
    [
        (dict(reweight={"beach": 3.0}), dict(reweight={"beach": 3.0})),
        (dict(self_max_queries=16), dict(self_max_queries=16)),
        (dict(local_blend="cat:tiger", threshold=0.6), dict(local_blend=LocalBlend("cat", "tiger", threshold=0.6))),
        (
            dict(local_blend="cat:tiger", threshold=[[0.2, 0.6]]),
            dict(local_blend=LocalBlend("cat", "tiger", threshold=(0.2, 0.6))),
        ),
        (
            dict(local_blend="cat:tiger", threshold="otsu"),
            dict(local_blend=LocalBlend("cat", "tiger", threshold="otsu")),
        ),
        (dict(places=[["up"]]), dict(sites=SiteFilter(places=("up",)))),
        (dict(strides=[[1, 4]], indices=[[0]]), dict(sites=SiteFilter(strides=(1, 4), indices=(0,)))),
        (dict(heads=[[1, 3]]), dict(sites=SiteFilter(heads=(1, 3)))),
        (dict(cross_replace=[[0.3, 0.8]]), dict(cross_replace=(0.3, 0.8))),
        (dict(guidance_scale=2.0, negative_prompt="night"), dict(guidance_scale=2.0, negative_prompt="night")),
    ],
)
def test_every_axis_reaches_the_edit(model, tmp_path, fields, options):
    common = {"source": FIELDS["source"], "target": FIELDS["target"][0], "steps": 3, "size": [64, 64]}
    (row,) = sweep(model, Grid.from_fields(common | fields), tmp_path / "with")
    alone = model.edit(common["source"], common["target"], **{"steps": 3, "size": (64, 64)} | options)
    assert np.array_equal(pixels(tmp_path / "with" / row["picture"]), np.asarray(alone.image))
    (without,) = sweep(model, Grid.from_fields(common), tmp_path / "without")
    assert not np.array_equal(pixels(tmp_path / "without" / without["picture"]), np.asarray(alone.image))


def test_the_rows_that_are_run_are_those_that_the_plan_says(model, tmp_path):
    grid = Grid.from_fields({**FIELDS, "self": [0.0, 0.5, 1.0], "blend": ["", "beach"]})
    work = plan_jobs(model, grid)
    before = model.rows
    sweep(model, grid, tmp_path)
    assert model.rows - before == sum(unit.rows for unit in work)
    rows = sum(unit.rows for unit in work)
    assert describe(work) == f"48 edits of 2 sources: {rows} rows of the UNet; as many runs of two prompts take 576"


def test_figures_are_of_the_pictures(model, tmp_path):
    grid = Grid.from_fields(
        {**FIELDS, "target": [FIELDS["source"]], "reweight": [{"beach": 1.0}, {"beach": 4.0}], "seed": 1}
    )
    same, more = sweep(model, grid, tmp_path, score=lambda *given: {"given": len(given)})[:2]
    assert same["psnr"] == 60 and same["mse"] < 1e-10 and same["ssim"] == pytest.approx(1) and same["given"] == 5
    assert more["psnr"] < 60 and more["mse"] > 0 and more["mse_inside"] is not None  # the re-weighted word has a place
    nothing = Grid.from_fields({"source": "a cat", "target": "a cat", "steps": 1, "size": [64, 64]})
    assert sweep(model, nothing, tmp_path / "other")[0]["psnr_inside"] is None


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_that_is_killed_ends_with_the_same_bytes(tmp_path):
    """SIGKILL at random moments of the run; then to the end. Tables, pictures and charts are the same."""
    (tmp_path / "grid.toml").write_text(TOML)
    draw, command = random.Random(0), [sys.executable, "-m", "minip2p", "sweep", tmp_path / "grid.toml", "-o"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.time()
    subprocess.run([*command, tmp_path / "whole"], check=True, env=environment, capture_output=True)
    took, killed = time.time() - began, 0
    for _ in range(3):
        running = subprocess.Popen([*command, tmp_path / "killed"], env=environment, stdout=subprocess.DEVNULL)
        try:
            running.wait(draw.uniform(0.4, 0.95) * took)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            killed += running.wait() == -signal.SIGKILL
    assert killed
    last = subprocess.run([*command, tmp_path / "killed"], check=True, env=environment, capture_output=True, text=True)
    whole, again = (contents(tmp_path / name) for name in ("whole", "killed"))
    assert whole.keys() == again.keys() and whole == again
    assert len([name for name in whole if name.name[:5].isdigit()]) == 72 and "72 edits of 3 sources" in last.stdout


def test_what_is_done_is_not_done_again(model, tmp_path):
    grid = Grid.from_fields(FIELDS)
    rows = sweep(model, grid, tmp_path)
    (tmp_path / "parts" / "seed2.json").unlink()
    before = model.rows
    assert sweep(model, grid, tmp_path) == rows
    assert model.rows - before == plan_jobs(model, grid)[1].rows
    assert sweep(model, grid, tmp_path) == rows and model.rows - before == plan_jobs(model, grid)[1].rows
    (tmp_path / rows[1]["picture"]).unlink()
    assert sweep(model, grid, tmp_path) == rows and (tmp_path / rows[1]["picture"]).exists()
    other = minip2p.load(dtype=torch.bfloat16)
    for of, another, score in ((model, {"steps": 4}, None), (other, {}, None), (model, {}, lambda *given: {})):
        with pytest.raises(ValueError, match="holds the sweep of another grid or model.*: choose another folder"):
            sweep(of, Grid.from_fields(FIELDS | another), tmp_path, score=score)


def test_the_results_are_a_tidy_table_sheets_and_charts(model, tmp_path):
    grid = Grid.from_fields({**FIELDS, "self": [0.0, 1.0], "seed": 1})
    rows = sweep(model, grid, tmp_path)
    paths = charts.write_results(tmp_path, grid, rows)
    pairs = ["target-cross", "target-self", "cross-self"]
    pictures = [f"{kind}-{pair}.png" for pair in pairs for kind in ("sheet", "chart")]
    assert [path.name for path in paths] == ["table.csv", "table.parquet", *pictures]
    read = list(csv.DictReader(paths[0].open(encoding="utf-8")))
    table = pyarrow.parquet.read_table(paths[1]).to_pylist()
    assert len(read) == len(table) == 8 and list(read[0]) == list(table[0])
    for row, text, cell in zip(rows, read, table, strict=True):
        assert float(text["psnr"]) == cell["psnr"] == row["psnr"] and text["cross"] == cell["cross"] == label(
            row["cross"]
        )
    sheet = charts.sheet(tmp_path, grid, rows, "cross", "self")
    panel = pixels(tmp_path / rows[3]["picture"])  # the second cross, the second self
    wide = np.asarray(Image.fromarray(panel).resize((288, 256), Image.Resampling.LANCZOS))
    found = np.lib.stride_tricks.sliding_window_view(np.asarray(sheet), wide.shape)[:, :, 0]
    assert any(
        np.array_equal(found[y, x], wide)
        for y in range(found.shape[0] - 60, found.shape[0])
        for x in range(found.shape[1] - 60, found.shape[1])
    )
    assert min(pixels(path).std() for path in paths[2:]) > 10


@pytest.mark.parametrize(
    "change, says",
    [
        ("seeds = [1]", "a grid has no 'seeds', only source, seed, target"),
        ("cross = []", "cross has no values"),
        ("cross = 2", "0 <= start <= end <= 1"),
        ('cross = "much"', "0 <= start <= end <= 1"),
        ("places = [['left']]", "places must be some of"),
        ("strides = [[3]]", "strides must be some of [1, 2, 4], as a tuple, not (3,)"),
        ("heads = [[9]]", "heads must be"),
        ("blend = 'cow'", "'cow' is not in the prompt"),
        ("reweight = {cow = 2}", "'cow' is not in the prompt"),
        ("seed = 'x'", "seed must lie"),
        ("steps = 0", "steps must lie between 1 and 1000"),
        ("x = = 1", "Invalid value"),
        ("threshold = 2", "a blend's threshold must lie between 0 and 1"),
        ("size = [3]", "size must be two multiples"),
        ("places = 'up'", 'places: each value is "all" or a list'),
        ("heads = 3", "heads: each value"),
        ("self_pixels = 'x'", "self_pixels: each value is a whole number"),
        ("reweight = 3", "reweight: each value is weights by word"),
        ("blend = 3", "blend: each value is a word"),
        ("size = 64", "size must be two multiples"),
        ("heads = [[[0]]]", "heads: each value"),
        ("reweight = 0", "reweight: each value is weights by word"),
        ("seed = [1, 1]", "seed has 1 twice"),
        ("threshold = [1, 0.3, 1.0]", "threshold has 1.0 twice"),
    ],
)
def test_a_bad_grid_is_one_line(change, says, tmp_path, capsys):
    name = change.split()[0]
    kept = "\n".join(line for line in TOML.splitlines() if not line.startswith(f"{name} "))
    (tmp_path / "grid.toml").write_text(f"{kept}\n{change}\n")
    assert main.main(["sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and says in said.err, said
    assert not (tmp_path / "out").exists()


def test_a_grid_needs_a_source_a_target_and_a_file(tmp_path, capsys):
    for text, says in (('target = "a cat"', "a grid needs a source"), ('source = "a cat"', "a grid needs a target")):
        (tmp_path / "grid.toml").write_text(text)
        assert main.main(["sweep", str(tmp_path / "grid.toml")]) == 2 and says in capsys.readouterr().err
    assert main.main(["sweep", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: no such file" in capsys.readouterr().err


def test_a_chart_has_the_mean_of_each_pair_at_its_place(tmp_path, monkeypatch):
    """Every cell's number, as matplotlib is told to write it: cross down, self across, the mean over the seeds."""
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
    charts.chart(tmp_path / "x.png", grid, rows, "cross", "self")
    assert written == {(0, 0): "42.5", (0, 1): "43.5", (0, 2): "44.5", (1, 0): "82.5", (1, 1): "83.5", (1, 2): "84.5"}


def test_the_judge_sees_whether_the_objects_of_the_target_are_there(model):
    """A render stands for the picture: its own objects are there, others are not; its mask has IoU 1 with itself."""
    judge = Judge.load()
    picture = model.generate("a tiger on the beach", seed=1, size=(120, 128)).picture
    mask = judge(pad_picture(picture)[None]).masks("tiger")[0, :120] > 0.5
    scores = [
        judge.score(picture, picture, "a tiger on the beach", target, mask)
        for target in ("a tiger at sea", "a cat at sea", "the sea")
    ]
    assert [score["success"] for score in scores[:2]] == [1, 0] and math.isnan(scores[2]["success"])
    assert math.isnan(scores[0]["mask_iou"]) and scores[1]["mask_iou"] == scores[2]["mask_iou"] == 1
    assert judge.score(picture, picture, "a tiger", "a cat", ~mask)["mask_iou"] == 0


def test_the_bar_counts_rows(capsys):
    done = iter([3, 7])
    assert list(experiments.rows_progress(7, lambda: next(done))("ab")) == ["a", "b"]


def test_the_judge_scores_the_sweep_of_the_model_that_ships(tmp_path, capsys):
    (tmp_path / "grid.toml").write_text('source = "a cat on the beach"\ntarget = ["a tiger on the beach"]\nsteps = 2\n')
    assert main.main(["sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 edits of 1 sources: 8 rows") and said[1] == "8 rows of the UNet were run"
    (row,) = json.loads((tmp_path / "out" / "parts" / "seed0.json").read_text())
    assert row["success"] in (0, 1) and 0 <= row["mask_iou"] <= 1


@pytest.fixture
def finished(model, tmp_path):
    """A sweep that is done, its grid, and the file with the figures of a seed."""
    grid = Grid.from_fields({**FIELDS, "seed": [1], "steps": 2})
    sweep(model, grid, tmp_path)
    return grid, tmp_path, tmp_path / "parts" / "seed1.json"


@pytest.mark.parametrize(
    "damage",
    [
        lambda rows: None,
        lambda rows: [],
        lambda rows: {"a": [1]},
        lambda rows: rows[:-1],
        lambda rows: [1, *rows[1:]],
        lambda rows: [*rows[:-1], rows[0]],
        lambda rows: [{**rows[0], "psnr": "x"}, *rows[1:]],
        lambda rows: [{name: value for name, value in rows[0].items() if name != "cross"}, *rows[1:]],
        lambda rows: [{name: value for name, value in rows[0].items() if name != "psnr"}, *rows[1:]],
    ],
)
def test_figures_that_are_not_of_these_cells_are_refused_before_anything_is_run(model, finished, damage):
    grid, folder, part = finished
    part.write_text(json.dumps(damage(json.loads(part.read_text()))))
    before = model.rows
    with pytest.raises(ValueError, match="seed1.json: not the figures of its 4 cells: remove it"):
        sweep(model, grid, folder)
    assert model.rows == before
    part.write_text('[{"cell"')
    with pytest.raises(ValueError, match="seed1.json: not the figures"):
        sweep(model, grid, folder)
    part.unlink()
    assert len(sweep(model, grid, folder)) == 4


def test_results_of_which_nothing_says_what_they_are_are_not_taken_over(model, finished):
    grid, folder, _ = finished
    said = (folder / "grid.json").read_bytes()
    for change in (None, said[:-9], b"\xff"):
        (folder / "grid.json").unlink(missing_ok=True) if change is None else (folder / "grid.json").write_bytes(change)
        with pytest.raises(ValueError, match="holds the sweep of another grid or model"):
            sweep(model, Grid.from_fields({**FIELDS, "seed": [1], "source": "a pig on the beach", "steps": 2}), folder)
        with pytest.raises(ValueError, match="holds the sweep of another grid or model"):
            sweep(model, grid, folder)


def test_a_folder_goes_on_with_the_same_score_alone(model, tmp_path):
    grid, score = Grid.from_fields({**FIELDS, "seed": [1], "steps": 1}), lambda *given: {"fits": 1.0}
    sweep(model, grid, tmp_path, score=score, scored_by="one CLIP")
    assert sweep(model, grid, tmp_path, score=score, scored_by="one CLIP")
    with pytest.raises(ValueError, match="holds the sweep of another grid or model"):
        sweep(model, grid, tmp_path, score=score, scored_by="another CLIP")


@pytest.mark.parametrize("name", ["00001.png", "table.parquet", "sheet-seed-cross.png", "parts/seed2.json"])
def test_a_folder_in_the_place_of_a_result_is_found_before_the_run(tmp_path, capsys, name):
    (tmp_path / "grid.toml").write_text(TOML)
    (tmp_path / "out" / name).mkdir(parents=True)
    assert main.main(["sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("minip2p: error: ") and f"{name}: is a folder" in said.err and not said.out
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_picture_that_is_not_whole_is_named_when_the_sheets_are_made(model, finished):
    grid, folder, _ = finished
    (folder / "00000.png").write_bytes((folder / "00000.png").read_bytes()[:100])
    with pytest.raises(ValueError, match="00000.png: not a whole picture: remove it"):
        charts.write_results(folder, grid, sweep(model, grid, folder))


def test_a_mistake_in_a_grid_names_its_file(tmp_path, capsys):
    (tmp_path / "grid.toml").write_text(TOML + "self_pixels = 99999999999999999999999\n")
    assert main.main(["sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"minip2p: error: {tmp_path / 'grid.toml'}: self_pixels is a whole number from 0 on")
