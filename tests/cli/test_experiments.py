"""`minip2p sweep` and `minip2p bench-edits`. What they run is tested in tests/sweeps and tests/evaluation."""

import sys
from importlib.machinery import ModuleSpec

import pytest
from command_line import error_line, run

from minip2p.checkpoints.components import RowCounter
from minip2p.cli import estimate, experiments
from minip2p.evaluation import edit_benchmark, move_benchmark


def test_methods_are_named_or_all():
    assert experiments.parse_methods("direct,ddim", edit_benchmark.METHODS) == ["direct", "ddim"]
    assert experiments.parse_methods("all", edit_benchmark.METHODS) == list(edit_benchmark.METHODS)
    with pytest.raises(ValueError, match="--methods has 'direct'; the methods are vae, paste, "):
        experiments.parse_methods("direct", move_benchmark.METHODS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--methods", "direct,magic"), "--methods has 'magic'; the methods are vae, ddim"),
        (("--methods", ""), "--methods has ''"),
        (("--count", "0"), "--count must lie between 1 and 301, and is 0"),
        (("--count", "302"), "--count must lie between 1 and 301, and is 302"),
        (("--steps", "0"), "steps must lie between 1 and 1000"),
        (("--shard", "9/8"), "--shard is I/N, from 1/N to N/N, as 3/8, and not '9/8'"),
        (("--shard", "1/2", "--join"), "--join: not allowed with argument --shard"),
        (("--cases", "nothere"), "nothere/mapping_file.json: no such file"),
        (("--clip", "nothere"), "nothere"),
        (("--lpips", "nothere"), "nothere: no such file; LPIPS needs a safetensors file"),
        (("--dino", "weights"), "weights: no DINO; its folder has model.safetensors"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, message, tmp_path, capsys):
    assert message in error_line(capsys, "bench-edits", *arguments, "-o", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "origin, arguments, message",
    [
        (None, ("--ray",), "--ray needs Ray: pip install 'minip2p[ray]'"),
        ("ray/__init__.py", ("--ray", "--device", "mps"), "--device is cpu or cuda with it, not mps"),
        ("ray/__init__.py", ("--ray", "--shard", "1/2"), "--shard: not allowed with argument --ray"),
    ],
)
def test_a_sweep_on_ray_names_what_is_missing_or_cannot_be(origin, arguments, message, tmp_path, monkeypatch, capsys):
    """Of Ray only whether it is installed is asked."""
    monkeypatch.setattr(experiments, "find_spec", lambda name: ModuleSpec(name, None, origin=origin))
    grid = tmp_path / "grid.toml"
    grid.write_text('source = "a cat on the beach"\ntarget = "a dog on the beach"')
    assert message in error_line(capsys, "sweep", grid, "-o", tmp_path / "out", *arguments)
    assert list(tmp_path.iterdir()) == [grid]


@pytest.mark.parametrize(
    "arguments, shares",
    [
        ((), True),
        (("--dtype", "bfloat16"), False),
        (("--vae", "weights/tiny"), False),
        (("--model", "weights/tiny"), False),
    ],
)
def test_only_the_model_that_ships_shares_its_cases_among_processes(arguments, shares, tmp_path, monkeypatch):
    """The processes of the pool load that model and no other."""
    calls = []

    def stop(*_, **options):
        calls.append(options)
        raise SystemExit(7)

    monkeypatch.setattr(edit_benchmark, "run_benchmark", stop)
    assert run("bench-edits", "--count", 1, *arguments, "-o", tmp_path) == 7
    assert (calls[0]["make_pool"] is not None) == shares and calls[0]["steps"] == 50


def test_a_benchmark_announces_its_time(tmp_path, monkeypatch):
    """For what is left: 2 cases by 3 methods, of 10 steps, with a source and a target of 2 rows each."""
    calls = []
    monkeypatch.setattr(estimate, "announce", lambda components, rows, size, **plan: calls.append((rows, size, plan)))
    monkeypatch.setattr(edit_benchmark, "run_benchmark", lambda *_, **__: (_ for _ in ()).throw(SystemExit(7)))
    benchmark = "bench-edits", "--count", 2, "--steps", 10, "-o", tmp_path, "--methods"
    assert run(*benchmark, "vae,direct,null-text") == 7
    (rows, size, plan), *_ = calls
    assert rows == 2 * 10 * ((2 + 4) + (estimate.NULL_TEXT_ROWS + 4)) and size == (16, 16)
    assert plan["pictures"] == 2 * (1 + 2 + 2) and "--count" in plan["advice"] and "--size" not in plan["advice"]
    assert run(*benchmark, "direct+mask+polish") == 7
    assert calls[1][2]["pictures"] == 2 * (2 + estimate.REFINE_PICTURES * 20)


@pytest.mark.parametrize("package", ["skimage.metrics", "matplotlib.figure", "pyarrow"])
def test_a_missing_extra_is_one_line(package, monkeypatch, capsys):
    """The modules that import the package are imported again, and the package cannot be."""
    for name in ("minip2p.cli.experiments", "minip2p.sweeps.charts", "minip2p.io.tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    line = error_line(capsys, "sweep", "grid.toml")
    assert line.startswith("a sweep needs ") and line.endswith("pip install 'minip2p[sweep]'")


def test_the_progress_bar_counts_rows():
    counter = RowCounter()

    def steps():
        for step in "abc":
            yield step
            counter.rows += 4

    assert list(experiments.rows_progress(12, counter)(steps())) == ["a", "b", "c"]
