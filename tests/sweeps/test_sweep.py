"""Sweeps: every cell is the edit that it names, the plan predicts what is run, and a killed sweep loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from kills import Killed, kill_at_replacement
from paths import ROOT
from PIL import Image

import minip2p
from minip2p import LocalBlend
from minip2p.attention.contract import SiteFilter
from minip2p.checkpoints.components import RowCounter
from minip2p.cli import main, show
from minip2p.sweeps.grid import Grid
from minip2p.sweeps.sweep import describe, plan_jobs, rows_file, sweep

FIELDS = {
    "source": "a cat on the beach",
    "target": ["a tiger on the beach", "a cat on the beach at night"],
    "seed": [1, 2],
    "cross": [0.4, {"default_": 0.8, "the": 0.2}],
    "self": [[0.2, 0.6]],
    "steps": 3,
    "size": [64, 72],
}
ONE_CELL = {"source": FIELDS["source"], "target": FIELDS["target"][0], "steps": 3, "size": [64, 64]}


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def contents(folder):
    """The bytes of every file, by its path inside of the folder. What a killed process left half-written is no file."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_every_cell_is_the_edit_that_it_names(model, tmp_path):
    """Within one grey level, since a batch of another size rounds differently."""
    rows = sweep(model, Grid.from_fields(FIELDS), tmp_path)
    assert [row["cell"] for row in rows] == list(range(8))
    for row in rows:
        run = model.edit(
            FIELDS["source"],
            row["target"],
            seed=row["seed"],
            cross_replace=row["cross"],
            self_replace=(0.2, 0.6),
            steps=3,
            size=(64, 72),
        )
        assert np.abs(pixels(tmp_path / row["picture"]) - np.asarray(run.image, int)).max() <= 1
        source = pixels(tmp_path / f"source-seed{row['seed']}.png")
        assert np.array_equal(source, np.asarray(run.source_run.finish().image))
    assert len({(tmp_path / row["picture"]).read_bytes() for row in rows}) == 8


@pytest.fixture(scope="module")
def default_cell(model, tmp_path_factory):
    """The picture of a cell for which the grid names nothing but the prompts and the run."""
    folder = tmp_path_factory.mktemp("default")
    (row,) = sweep(model, Grid.from_fields(ONE_CELL), folder)
    return pixels(folder / row["picture"])


@pytest.mark.parametrize(
    "fields, options",
    [
        (dict(reweight={"beach": 3.0}), dict(reweight={"beach": 3.0})),
        (dict(self_max_queries=16), dict(self_max_queries=16)),
        (dict(blend="cat:tiger", threshold=0.6), dict(local_blend=LocalBlend("cat", "tiger", threshold=0.6))),
        (
            dict(blend="cat:tiger", threshold=[[0.2, 0.6]]),
            dict(local_blend=LocalBlend("cat", "tiger", threshold=(0.2, 0.6))),
        ),
        (dict(blend="cat:tiger", threshold="otsu"), dict(local_blend=LocalBlend("cat", "tiger", threshold="otsu"))),
        (dict(places=[["up"]]), dict(sites=SiteFilter(places=("up",)))),
        (dict(strides=[[1, 4]], indices=[[0]]), dict(sites=SiteFilter(strides=(1, 4), indices=(0,)))),
        (dict(heads=[[1, 3]]), dict(sites=SiteFilter(heads=(1, 3)))),
        (dict(cross=[[0.3, 0.8]]), dict(cross_replace=(0.3, 0.8))),
        (dict(self=[[0.3, 0.8]]), dict(self_replace=(0.3, 0.8))),
        (dict(guidance=2.0, negative="night"), dict(guidance_scale=2.0, negative_prompt="night")),
    ],
)
def test_every_axis_reaches_the_edit(model, default_cell, tmp_path, fields, options):
    (row,) = sweep(model, Grid.from_fields(ONE_CELL | fields), tmp_path)
    run = model.edit(ONE_CELL["source"], ONE_CELL["target"], **{"steps": 3, "size": (64, 64)} | options)
    picture = pixels(tmp_path / row["picture"])
    assert np.array_equal(picture, np.asarray(run.image))
    assert not np.array_equal(picture, default_cell)


def test_the_plan_predicts_the_rows_that_are_run(model, tmp_path):
    grid = Grid.from_fields({**FIELDS, "cross": 0.4, "self": [0.0, 0.5, 1.0], "blend": ["", "beach"]})
    jobs, counter = plan_jobs(model, grid), RowCounter()
    rows = sum(job.rows for job in jobs)
    totals = []
    sweep(model, grid, tmp_path, counter=counter, progress=lambda total, counter: totals.append(total) or iter)
    assert counter.rows == rows and totals == [rows]
    assert describe(jobs) == f"24 edits of 2 sources: {rows} rows of the UNet; 288 if each edit ran on its own"


@pytest.mark.parametrize("options, rows", [({"guidance": 1.0}, 4), ({"guidance_interval": [0, 0.5]}, 6)])
def test_rows_of_edits_on_their_own_are_those_that_they_would_run(model, options, rows):
    """Of source and target, in four steps: without guidance, and with guidance at two of them."""
    fields = ONE_CELL | {"steps": 4, "size": [32, 32], **options}
    jobs = plan_jobs(model, Grid.from_fields(fields))
    assert f"; {2 * rows} if each edit ran on its own" in describe(jobs)


def test_more_parts_than_cells_are_as_many_as_cells(model):
    jobs = plan_jobs(model, Grid.from_fields(ONE_CELL | {"cross": [0.4, 1.0], "size": [32, 32], "split": 10**12}))
    assert [job.unit.parts for job in jobs] == [2, 2]


def test_a_grid_that_is_split_has_the_same_cells_for_more_rows(model, tmp_path):
    """Within one grey level, since a batch of another size rounds differently."""
    fields = {**FIELDS, "steps": 4, "size": [32, 32], "seed": 1, "self": [0.0, 0.5, 1.0]}
    unsplit, split = Grid.from_fields(fields), Grid.from_fields(fields | {"split": 5})
    rows, counter = sweep(model, unsplit, tmp_path / "whole"), RowCounter()
    jobs = plan_jobs(model, split)
    assert len(jobs) == 5 and all(job.unit.parts == 5 for job in jobs)
    split_rows = sweep(model, split, tmp_path / "split", counter=counter)
    assert counter.rows == sum(job.rows for job in jobs) > sum(job.rows for job in plan_jobs(model, unsplit))
    assert describe(jobs).startswith(f"12 edits of 1 source in 5 units: {counter.rows} rows of the UNet;")
    assert [(row["cell"], row["cross"], row["self"]) for row in split_rows] == [
        (row["cell"], row["cross"], row["self"]) for row in rows
    ]
    for row in rows:
        pictures = [pixels(tmp_path / name / row["picture"]).astype(int) for name in ("whole", "split")]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
    sources = [(tmp_path / name / "source-seed1.png").read_bytes() for name in ("whole", "split")]
    assert sources[0] == sources[1]


def test_figures_are_measured_on_the_pictures(model, tmp_path):
    grid = Grid.from_fields(
        {**FIELDS, "target": [FIELDS["source"]], "reweight": [{"beach": 1.0}, {"beach": 4.0}], "seed": 1}
    )
    same, stronger = sweep(model, grid, tmp_path, score=lambda *arguments: {"arguments": len(arguments)})[:2]
    assert same["psnr"] == 60 and same["mse"] < 1e-10 and same["ssim"] == pytest.approx(1) and same["arguments"] == 5
    assert stronger["psnr"] < 60 and stronger["mse"] > 0
    assert stronger["mse_inside"] is not None  # the re-weighted word has a place
    no_words = Grid.from_fields({"source": "a cat", "target": "a cat", "steps": 1, "size": [64, 64]})
    assert sweep(model, no_words, tmp_path / "other")[0]["psnr_inside"] is None


def test_a_sweep_that_is_killed_at_any_moment_ends_with_the_same_bytes(model, tmp_path, monkeypatch):
    """Killed before each of its file replacements, between which a folder does not change, and then continued."""
    grid = Grid.from_fields({**FIELDS, "cross": 0.4, "steps": 1, "size": [32, 32]})
    sweep(model, grid, tmp_path / "expected")
    expected = contents(tmp_path / "expected")
    assert len(expected) == 9  # grid.json; for each of two seeds a source, two cells and the rows
    for moment in range(len(expected)):
        folder = tmp_path / f"killed-{moment}"
        with monkeypatch.context() as patches, pytest.raises(Killed):
            kill_at_replacement(patches, moment)
            sweep(model, grid, folder)
        assert contents(folder) != expected
        sweep(model, grid, folder)
        assert contents(folder) == expected


def test_a_process_that_is_killed_ends_with_the_same_bytes(tmp_path, capsys):
    """SIGKILL as soon as the first and the second seed are finished; then to the end: the same pictures, table, sheets
    and charts."""
    grid = {"source": FIELDS["source"], "target": FIELDS["target"], "seed": [1, 2, 3, 4], "steps": 2, "size": [64, 64]}
    (tmp_path / "grid.toml").write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in grid.items()))
    command = ["sweep", str(tmp_path / "grid.toml"), "-o"]
    assert main.main([*command, str(tmp_path / "expected")]) == 0
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    for seed in (1, 2):
        process = subprocess.Popen(
            [sys.executable, "-m", "minip2p", *command, str(tmp_path / "killed")],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        while not (tmp_path / "killed" / "parts" / f"seed{seed}.json").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "table.csv").exists()
    capsys.readouterr()
    assert main.main([*command, str(tmp_path / "killed")]) == 0
    expected = contents(tmp_path / "expected")
    assert contents(tmp_path / "killed") == expected
    assert len([path for path in expected if path.name[:5].isdigit()]) == 8
    assert "8 edits of 4 sources" in capsys.readouterr().out


def test_finished_seeds_are_not_run_again(model, tmp_path):
    grid = Grid.from_fields({**FIELDS, "steps": 2, "size": [32, 40]})
    rows, jobs = sweep(model, grid, tmp_path), plan_jobs(model, grid)

    def rows_run():
        counter = RowCounter()
        assert sweep(model, grid, tmp_path, counter=counter) == rows
        return counter.rows

    assert rows_run() == 0
    rows_file(tmp_path, jobs[1].unit).unlink()
    assert rows_run() == jobs[1].rows and rows_run() == 0
    (tmp_path / rows[1]["picture"]).unlink()
    assert rows_run() == jobs[0].rows and (tmp_path / rows[1]["picture"]).exists()


def test_a_folder_belongs_to_one_grid_one_model_and_one_score(model, tmp_path):
    fields = {**ONE_CELL, "steps": 1}
    fits = lambda *arguments: {"fits": 1.0}  # noqa: E731
    sweep(model, Grid.from_fields(fields), tmp_path, score=fits, scored_by="CLIP")
    assert sweep(model, Grid.from_fields(fields), tmp_path, score=fits, scored_by="CLIP")[0]["fits"] == 1
    half = minip2p.load(dtype=torch.bfloat16)
    for pipe, changes, scored_by in ((model, {"steps": 2}, "CLIP"), (half, {}, "CLIP"), (model, {}, "another CLIP")):
        with pytest.raises(ValueError, match="holds the sweep of another grid or model.*: choose another folder"):
            sweep(pipe, Grid.from_fields(fields | changes), tmp_path, score=fits, scored_by=scored_by)
    with pytest.raises(ValueError, match="holds the sweep of another grid or model.*: choose another folder"):
        sweep(model, Grid.from_fields(fields), tmp_path)


@pytest.fixture(scope="module")
def finished_sweep(model, tmp_path_factory):
    """A grid of four cells, and the files of its finished sweep."""
    folder, grid = (
        tmp_path_factory.mktemp("finished"),
        Grid.from_fields({**FIELDS, "seed": [1], "steps": 1, "size": [32, 40]}),
    )
    sweep(model, grid, folder)
    return grid, contents(folder)


@pytest.fixture
def finished(finished_sweep, tmp_path):
    """A finished sweep: its grid, its folder, and the file with the rows of its seed."""
    grid, files = finished_sweep
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
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
def test_rows_that_are_not_of_these_cells_are_refused_before_anything_runs(model, finished, damage):
    grid, folder, file = finished
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    counter = RowCounter()
    with pytest.raises(ValueError, match="seed1.json: does not hold the figures of its 4 cells: remove it"):
        sweep(model, grid, folder, counter=counter)
    assert counter.rows == 0


def test_a_truncated_file_of_rows_is_refused_and_may_be_removed(model, finished):
    grid, folder, file = finished
    file.write_text('[{"cell"')
    with pytest.raises(ValueError, match="seed1.json: does not hold the figures"):
        sweep(model, grid, folder)
    file.unlink()
    assert len(sweep(model, grid, folder)) == 4


@pytest.mark.parametrize("damage", [lambda claim: None, lambda claim: claim[:-9], lambda claim: b"\xff"])
def test_results_of_an_unknown_grid_are_not_continued(model, finished, damage):
    grid, folder, _ = finished
    claim = damage((folder / "grid.json").read_bytes())
    (folder / "grid.json").unlink()
    if claim is not None:
        (folder / "grid.json").write_bytes(claim)
    other = Grid.from_fields({**FIELDS, "seed": [1], "source": "a pig on the beach", "steps": 1, "size": [32, 40]})
    for each in (other, grid):
        with pytest.raises(ValueError, match="holds the sweep of another grid or model"):
            sweep(model, each, folder)


GRID_TOML = """
source = "a cat on the beach"
target = ["a tiger on the beach"]
seed = [1, 2]
cross = [0.4, 1.0]
steps = 2
size = [64, 64]
"""


def run_command(folder, toml, capsys, *options):
    """Runs `minip2p sweep` on a grid: its exit status and its output."""
    (folder / "grid.toml").write_text(toml)
    status = main.main(["sweep", str(folder / "grid.toml"), "-o", str(folder / "out"), *options])
    return status, capsys.readouterr()


@pytest.mark.parametrize("line", ["self_max_queries = -1", "blend = 'cow'", "x = = 1", "seeds = [1]"])
def test_the_command_names_the_file_of_a_wrong_grid_in_one_line_and_makes_no_folder(tmp_path, capsys, line):
    status, output = run_command(tmp_path, GRID_TOML + line + "\n", capsys)
    assert status == 2 and output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith(f"minip2p: error: {tmp_path / 'grid.toml'}: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["00001.png", "table.parquet", "sheet-seed-cross.png", "parts/seed2.json"])
def test_the_command_finds_a_folder_in_the_place_of_a_result_before_it_runs(tmp_path, capsys, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    status, output = run_command(tmp_path, GRID_TOML, capsys)
    assert status == 2 and output.out == ""
    assert output.err.startswith("minip2p: error: ") and f"{name}: is a folder" in output.err
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("options", "rows"), [((), 8), (("--model", "tiny-fast"), 4)], ids=["default", "tiny-fast"])
def test_the_command_scores_the_models_that_ship_with_their_judge(options, rows, tmp_path, capsys):
    toml = 'source = "a cat on the beach"\ntarget = ["a tiger on the beach"]\nsteps = 2\n'
    status, output = run_command(tmp_path, toml, capsys, *options)
    assert status == 0
    lines = output.out.splitlines()
    assert lines[0].startswith(f"1 edit of 1 source: {rows} rows") and lines[1] == f"{rows} rows of the UNet were run"
    assert lines[-1].startswith("recommended: nothing, since the grid compares no settings")
    (row,) = json.loads((tmp_path / "out" / "parts" / "seed0.json").read_text())
    assert row["success"] in (0, 1) and 0 <= row["mask_iou"] <= 1


def test_every_picture_of_the_command_has_its_settings_and_the_last_line_recommends(tmp_path, capsys):
    toml = (
        GRID_TOML.replace("seed = [1, 2]", "seed = 3").replace("[64, 64]", "[128, 128]") + 'negative = "fog, night"\n'
    )
    status, output = run_command(tmp_path, toml, capsys)
    assert status == 0 and output.out.splitlines()[-1].startswith("recommended: ")
    pictures = list((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 6  # the source, two cells, the trade-off, a sheet and a chart
    for name, kind in (
        ("tradeoff", "Chart: trade-off"),
        ("sheet-cross", "Sheet: cross"),
        ("chart-cross", "Chart: cross"),
    ):
        assert show.read_settings(tmp_path / "out" / f"{name}.png") == (
            "a cat on the beach\nNegative prompt: fog, night\nSteps: 2, Sampler: DDIM, CFG scale: 4.0, Seed: 3, "
            f"Size: 128x128, Model: tiny, Target: a tiger on the beach, Cross: 0.4 | 1.0, {kind}"
        )
    assert all("Steps: 2" in show.read_settings(path) for path in pictures)
