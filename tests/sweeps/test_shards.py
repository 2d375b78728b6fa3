"""Shards: together they are one run, to the byte, in a folder that they share or in folders of their own."""

import json

import pytest
from kills import Killed, kill_at_replacement

from minip2p.cli import main
from minip2p.evaluation import edit_benchmark, move_benchmark
from minip2p.evaluation.move_cases import read_move_cases
from minip2p.evaluation.pie_bench import read_cases
from minip2p.io.files import temporary_name
from minip2p.sweeps.grid import Grid
from minip2p.sweeps.shards import Shard
from minip2p.sweeps.sweep import plan_jobs, rows_file, sweep

EIGHT = [Shard(number, 8) for number in range(1, 9)]
FIELDS = {
    "source": "a cat on the beach",
    "target": "a dog on the beach",
    "seed": list(range(9)),
    "steps": 1,
    "size": [32, 32],
}


def contents(folder):
    """The bytes of every file, by its path inside of the folder. What a killed process left half-written is no file."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.parametrize("text, units", [("1/3", [0, 3, 6]), ("3/3", [2, 5]), ("1/1", list(range(8))), ("9/10", [])])
def test_a_shard_has_every_nth_unit(text, units):
    assert Shard.parse(text).of(range(8)) == units


def test_each_unit_is_in_one_shard():
    assert sorted(unit for shard in EIGHT for unit in shard.of(range(30))) == list(range(30))


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "1/0", "-1/8", "1/8/2", "a/b", " 1/8", "1/9999999999", "½/1"])
def test_what_is_no_shard_is_an_error_in_one_line(text):
    with pytest.raises(ValueError, match="--shard is I/N, from 1/N to N/N, as 3/8, and not") as error:
        Shard.parse(text)
    assert "\n" not in str(error.value)


def test_eight_shards_of_a_sweep_are_one_run_to_the_byte(model, tmp_path):
    """Six of them share a folder, and two have their own."""
    grid, shared, others = Grid.from_fields(FIELDS), tmp_path / "shared", [tmp_path / "a", tmp_path / "b"]
    rows, units = sweep(model, grid, tmp_path / "one"), [job.unit for job in plan_jobs(model, grid)]
    for shard in reversed(EIGHT):
        folder = others[shard.number] if shard.number < 2 else shared
        sweep(model, grid, folder, shard=shard)
        assert rows_file(folder, shard.of(units)[0]).exists()
    sweep(model, grid, others[0], shard=EIGHT[1])
    with pytest.raises(
        ValueError, match=r"shared: 2 of 9 results are missing, such as seed 0: run all shards"
    ) as error:
        sweep(model, grid, shared, join=[])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="new: 6 of 9 results are missing"):
        sweep(model, grid, tmp_path / "new", join=others)
    assert sweep(model, grid, shared, join=others) == rows
    assert contents(shared) == contents(tmp_path / "one")
    with pytest.raises(ValueError, match=r"a: holds the sweep of another grid or model \(of other grid\.steps\)"):
        sweep(model, Grid.from_fields(FIELDS | {"steps": 2}), tmp_path / "new", join=[others[0]])
    with pytest.raises(FileNotFoundError, match=r"grid.json: no such file: .*none has no results of a shard"):
        sweep(model, grid, shared, join=[tmp_path / "none"])
    assert not (tmp_path / "new").exists()


def test_eight_shards_of_a_benchmark_of_edits_are_one_run_to_the_byte(model, tmp_path, monkeypatch):
    """All figures but the seconds."""
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    cases, methods, others = read_cases()[:5], ["vae", "ddim"], [tmp_path / "a", tmp_path / "b"]

    def run(folder, **options):
        return edit_benchmark.run_benchmark(model, cases, methods, folder, steps=1, **options)

    rows = run(tmp_path / "one")
    parts = [run(others[shard.number % 2], shard=shard) for shard in EIGHT]
    assert len(rows) == 10 and [len(part) for part in parts] == [2, 2, 3, 3, 4, 4, 5, 5]  # of the folder, until then
    with pytest.raises(ValueError, match=r"a: 5 of 10 results are missing, such as case \d+ by vae: run all shards"):
        run(others[0], join=[])
    with pytest.raises(ValueError, match="all: 5 of 10 results are missing"):
        run(tmp_path / "all", join=others[:1])
    assert not (tmp_path / "all").exists()
    assert run(tmp_path / "all", join=others) == rows
    assert contents(tmp_path / "all") == contents(tmp_path / "one")


def test_shards_of_a_benchmark_of_moves_are_one_run_to_the_byte(model, tmp_path, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    cases, methods = read_move_cases()[:2], ["vae", "paste"]

    def run(folder, **options):
        return move_benchmark.run_benchmark(model, cases, methods, folder, steps=1, **options)

    rows = run(tmp_path / "one")
    for number in (1, 2):
        run(tmp_path / "two", shard=Shard(number, 2))
    assert run(tmp_path / "two", join=[]) == rows
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_shards_of_a_grid_that_is_split_are_one_run_to_the_byte(model, tmp_path, monkeypatch):
    """Two seeds of six cells in three units each; a shard is killed in its second unit, and continued."""
    fields = FIELDS | {"seed": [1, 2], "steps": 4, "cross": [0.25, 0.5, 1.0], "self": [0.0, 1.0], "split": 3}
    grid = Grid.from_fields(fields)
    jobs = plan_jobs(model, grid)
    assert len(jobs) == 6 and sorted(cell for job in jobs for cell in job.unit.cells) == list(range(12))
    rows = sweep(model, grid, tmp_path / "one")
    assert [row["cell"] for row in rows] == list(range(12))
    expected, shared = contents(tmp_path / "one"), tmp_path / "shared"
    with monkeypatch.context() as patches, pytest.raises(Killed):
        kill_at_replacement(patches, 6)  # after grid.json and a unit: its source, two cells and its rows
        sweep(model, grid, shared, shard=Shard(2, 2))
    assert rows_file(shared, jobs[1].unit).exists() and not rows_file(shared, jobs[3].unit).exists()
    sweep(model, grid, shared, shard=Shard(2, 2))
    with pytest.raises(ValueError, match="3 of 6 results are missing, such as seed 1, part 1 of 3"):
        sweep(model, grid, shared, join=[])
    sweep(model, grid, shared, shard=Shard(1, 2))
    assert sweep(model, grid, shared, join=[]) == rows and contents(shared) == expected
    with pytest.raises(ValueError, match="holds the sweep of another grid"):
        sweep(model, Grid.from_fields(fields | {"split": 2}), shared)


def test_a_shard_leaves_what_its_neighbour_is_writing(model, tmp_path):
    grid = Grid.from_fields(FIELDS | {"seed": [1, 2]})
    sweep(model, grid, tmp_path, shard=Shard(1, 2))
    half_written = temporary_name(tmp_path / "00001.png")
    half_written.write_text("half")
    sweep(model, grid, tmp_path, shard=Shard(2, 2))
    assert half_written.read_text() == "half"


def test_the_command_writes_tables_when_shards_are_joined(tmp_path, capsys):
    file, folder = tmp_path / "grid.toml", tmp_path / "sweep"
    fields = FIELDS | {"seed": [1, 2]}
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items()))
    command = ["sweep", str(file), "-o", str(folder)]
    assert main.main([*command, "--shard", "2/2"]) == 0
    out = capsys.readouterr().out
    assert "1 edit of 1 source:" in out and "shard 2/2: 1 of 2 seeds; --join writes the tables of all shards" in out
    assert not (folder / "table.csv").exists()
    assert main.main([*command, "--shard", "3/3"]) == 0  # which has no seed
    assert main.main([*command, "--join"]) == 2
    error = capsys.readouterr().err
    assert "1 of 2 results are missing, such as seed 1" in error and not (folder / "table.csv").exists()
    assert main.main([*command, "--shard", "1/2"]) == main.main([*command, "--join"]) == 0
    assert len((folder / "table.csv").read_text().splitlines()) == 3
    assert "0 rows of the UNet were run" in capsys.readouterr().out
