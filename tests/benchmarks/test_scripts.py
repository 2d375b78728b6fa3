"""The benchmarks: those of the model that ships run once through, and all of them can be imported."""

import importlib
import json
import math
import os
import subprocess
import sys

import pytest
from paths import ROOT

import minip2p

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """Imports a script by its name. Its folder is on the path while the tests of this file run, as if it were run."""
    others = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - others:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture
def run(script, tmp_path, monkeypatch, capsys):
    """Runs a script in an empty folder. Returns the figures of its last line of output."""
    monkeypatch.chdir(tmp_path)

    def run_script(name, *options):
        script(name).main(options)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run_script


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_script_can_be_imported(script, name):
    assert script(name).__doc__


def test_the_offsets_of_direct_inversion_reconstruct_what_the_vae_does(run, tmp_path):
    """Sampled with its offsets, direct inversion ends at the photograph's latents. Null-text inversion is nearer to
    them than DDIM. Finished photographs are not run again."""
    options = "--count", "1", "--steps", "2"
    figures = run("reconstruct", *options)
    assert figures["pictures"] == 1
    for w in ("4", "7.5"):
        assert figures[f"direct_psnr_{w}"] == pytest.approx(figures[f"vae_psnr_{w}"], abs=0.01)
        assert figures[f"ddim_psnr_{w}"] < figures[f"null-text_psnr_{w}"] < figures[f"vae_psnr_{w}"] + 0.5
    (file,) = (tmp_path / "out" / "reconstruct" / "2-4").iterdir()
    row = json.loads(file.read_text())
    file.write_text(json.dumps({**row, "ddim": {**row["ddim"], "psnr": 1.0}}))
    assert run("reconstruct", *options)["ddim_psnr_4"] == 1.0


def test_a_sharp_mask_is_nearer_to_the_truth_than_the_published_recipe(run, tmp_path):
    figures = run("masks", "--count", "2", "--steps", "3")
    assert figures["pictures"] == 2 and figures["stride 1, smooth, Otsu"] > figures["recipe at stride 2"] + 0.1
    assert (tmp_path / "out" / "masks.png").exists()


def test_both_maps_and_the_seed_preserve_more_of_the_structure_than_nothing(run):
    figures = run("carries", "--count", "1", "--steps", "2")
    assert figures["seed, both maps, structure"] < figures["nothing, structure"]
    assert figures["τ 1, structure"] < figures["τ 0, structure"] and figures["cases"] == 1


def test_approximations_run_fewer_rows_and_are_compared_with_the_exact_edit(script, run, monkeypatch):
    """In 4 and 2 steps instead of 50 and 20. Of 4 steps, the interval has 2."""
    module = script("approximations")
    few = {name: (4 if steps == 50 else 2, options) for name, (steps, options) in module.WAYS.items()}
    monkeypatch.setattr(module, "WAYS", few)
    figures = run("approximations", "--count", "1")
    assert [figures[f"{name}, rows"] for name in few] == [12, 10, 10, 9, 6] and figures["cases"] == 1
    assert figures["exact, psnr"] is None and all(0 < figures[f"{name}, psnr"] < 80 for name in few if name != "exact")


def test_an_edit_of_a_photograph_costs_the_rows_of_its_method(run, tmp_path):
    """Virtual inversion: three rows a step. Direct inversion: one of the inversion and three of the edit, less that of
    the source after the last step that is read. The plot has the methods that the folder of results has."""
    results = tmp_path / "bench"
    results.mkdir()
    (results / "bench.json").write_text(json.dumps({"steps": 2}))
    (results / "table.csv").write_text("case,method,success,psnr\n0,virtual,1,20\n1,virtual,0,\n0,ddim,1,20\n")
    options = "--methods", "virtual:2", "direct:2", "--rounds", "1", "--bench", str(results), "-o", "front.png"
    figures = run("photograph", *options)
    assert figures["virtual, 2 steps"]["rows"] == 6 and figures["direct, 2 steps"]["rows"] == 8
    assert (tmp_path / "front.png").stat().st_size > 10_000
    methods = "--methods", "direct:4", "fast:4", "--rounds", "1"
    few, all_steps = run("photograph", *methods, "--measured", "2"), run("photograph", *methods)
    for name, cost in all_steps.items():
        assert few[name]["rows"] == cost["rows"]


def test_seconds_are_predicted_from_the_rows_of_all_steps(script, monkeypatch):
    """8 rows and the VAE take 5 s, the VAE alone 1 s; so 32 rows and the VAE take 17 s."""
    photograph, pipe = script("photograph"), minip2p.load()
    monkeypatch.setattr(photograph, "run_edit", lambda pipe, case, name, steps: 4 * steps)
    monkeypatch.setattr(photograph, "time_in_turn", lambda rounds, edit: {"edit": 5.0 if edit() is None else 0.0})
    monkeypatch.setattr(photograph, "vae_seconds", lambda pipe, case: 1.0)
    cost = photograph.measure(pipe, None, "direct", 8, 2, 1)
    assert (cost.rows, cost.seconds) == (32, 17.0)


def test_the_qualities_are_the_means_of_the_cases(script, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps({"steps": 2}))
    (tmp_path / "table.csv").write_text("case,method,success,psnr\n0,a,1,20\n1,a,0,\n2,a,0,30\n0,b,1,\n")
    qualities = script("photograph").read_qualities([tmp_path])
    assert qualities["a", 2].success == pytest.approx(1 / 3) and qualities["a", 2].psnr == 25
    assert qualities["b", 2].success == 1 and math.isnan(qualities["b", 2].psnr)


def test_eta_is_measured_with_and_without_a_blend(run, script, monkeypatch):
    monkeypatch.setattr(script("eta"), "ETAS", (0.0, 1.0))
    figures = run("eta", "--count", "1", "--model", str(ROOT / "weights/tiny-fast"))
    assert (figures["cases"], figures["steps"]) == (1, 4)
    names = {"fast, η 0", "fast, η 1", "fast+mask, η 0", "fast+mask, η 1"}
    assert names <= figures.keys() and figures["fast, η 0"] != figures["fast, η 1"]


def test_the_front_has_the_points_that_no_other_beats(script):
    points = [(1.0, 20.0), (2.0, 19.0), (2.0, 30.0), (3.0, 30.0), (0.5, 20.0)]
    assert script("photograph").front(points) == [(0.5, 20.0), (2.0, 30.0)]


def test_a_live_edit_takes_four_rows_of_the_model_of_few_steps(run):
    """The source does not run again. One that differs from the one before in a weight alone shares what precedes it."""
    assert 0 < run("live", "--count", "3")["rows an edit"] <= 4


def test_a_damaged_result_of_a_script_that_a_user_runs_is_an_error_in_one_line(tmp_path):
    """The script in a process of its own, beside the checkout."""
    command = [sys.executable, BENCHMARKS / "masks.py", "--count", "1", "--steps", "1", "-o", tmp_path / "sub"]
    (tmp_path / "sub").mkdir()
    process = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert process.returncode == 2 and process.stderr.startswith("minip2p: error: ") and "is a folder" in process.stderr
    assert process.stderr.count("\n") == 1


def test_instructions_say_the_cases_and_plans_are_compared_by_meaning(script):
    instructions = script("instructions")
    cases = {case.name: case for case in instructions.read_cases()}
    told = {name: instructions.instruction_for(cases[name], 0) for name in ("000", "001", "002", "003", "004", "005")}
    assert list(told.values()) == [
        "make the dog a rabbit",
        "add a green cake",
        "remove the camel",
        "make the hat green",
        "put the sheep on grass",
        "make it a pencil sketch",
    ]
    add, style, remove = cases["001"], cases["005"], cases["002"]

    def agreement(case, target, **fields):
        return instructions.agreement(minip2p.Plan(target=target, kind="swap", **fields), case)

    assert agreement(add, add.target) == "exact"
    assert agreement(add, "the purple chair and green cake in desert, watercolor") == "articles"
    assert agreement(style, "a pencil sketch of a lion at night with falling snow") == "meaning"
    assert agreement(style, "a watercolor of a lion at night with falling snow") == "other"
    assert agreement(remove, remove.target, remove=("camel",)) == "meaning"
    assert agreement(remove, remove.source, remove=("camel",)) == "other"
    assert agreement(remove, remove.target, remove=("horse",)) == "other"
    assert instructions.agreement(None, remove) == "refused"
    colour = cases["003"]
    plain = minip2p.Plan(target=colour.target, kind="attribute")
    blended = minip2p.Plan(target=colour.target, kind="attribute", local_blend=("hat", "hat"))
    other = minip2p.Plan(target=colour.target, kind="attribute", self_replace=0.5)
    removal = minip2p.Plan(target=colour.source, kind="remove", remove=("hat",))
    methods = [instructions.method_of(plan, colour) for plan in (plain, blended, other, removal)]
    assert methods == ["direct", "direct+mask", None, None]
