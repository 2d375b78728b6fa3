"""The benchmark of moves: its cases, its figures by hand, its methods, its tables, and continuing what was begun."""

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p.checkpoints.components import Components, RowCounter
from minip2p.cli import main
from minip2p.evaluation import make_move_cases, move_benchmark
from minip2p.evaluation.make_move_cases import KINDS, can_be_judged, change_thing, describe_case, overlap, scene_pair
from minip2p.evaluation.move_benchmark import (
    METHODS,
    SETTINGS,
    jobs_of,
    measure_move,
    plan_move,
    result_files,
    run_benchmark,
)
from minip2p.evaluation.move_cases import MoveCase, read_move_cases
from minip2p.evaluation.move_tables import json_line, markdown_tables, summarize_moves
from minip2p.evaluation.pie_bench import encode_runs
from minip2p.metrics.image import interval
from minip2p.tiny.judge import Judge
from minip2p.tiny.render import render
from minip2p.tiny.scenes import ANIMALS, THINGS, is_held_out
from minip2p.tiny.sprites import Sprites

CASES = read_move_cases()


@pytest.fixture(scope="module")
def sprites():
    square = np.full((16, 16, 4), 200, np.uint8)
    square[..., 3] = 255
    return Sprites({name: square for name in ANIMALS + THINGS})


# --- cases


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_changes_the_last_object_as_its_kind_says_and_nothing_else(kind, sprites):
    for number in range(4):
        before, after = scene_pair(kind, number, np.random.default_rng(number), sprites)
        assert is_held_out(before) and len(before.things) == {"duplicate": 1, "remove": 2}.get(kind, 1 + number % 2)
        changed = {"things"}
        assert {name for name in vars(before) if getattr(before, name) != getattr(after, name)} <= changed | {"caption"}
        _, fields = describe_case(kind, before, after, sprites)
        if kind == "remove":
            assert after.things == before.things[:-1] and "by" not in fields
            continue
        old, new = before.things[-1], after.things[-1]
        assert fields["word"] == old.name == new.name
        assert after.things == ((*before.things, new) if kind == "duplicate" else (*before.things[:-1], new))
        ratio = new.size / old.size
        assert {"enlarge": ratio > 1.2, "shrink": ratio < 0.85, "depth": abs(math.log(ratio)) > 0.16}.get(
            kind, ratio == 1
        )
        x, y = fields["by"]
        assert {"horizontal": y == 0 and abs(x) >= 16, "diagonal": min(abs(x), abs(y)) >= 11}.get(kind, True)
        assert kind != "duplicate" or overlap(old, new, sprites) == 0


def test_an_object_that_comes_nearer_grows_with_its_distance_from_the_horizon(sprites):
    before, after = scene_pair("depth", 0, np.random.default_rng(3), sprites)
    (old,), (new,) = before.things, after.things
    ratio = new.size / old.size
    assert (new.foot - before.horizon) / (old.foot - before.horizon) == pytest.approx(ratio)
    assert (new.x - 64) / (old.x - 64) == pytest.approx(ratio)
    assert change_thing("enlarge", before, np.random.default_rng(0), sprites).size > old.size


@pytest.mark.parametrize("foot, order", [(-4, ["changed", "other"]), (4, ["other", "changed"])])
def test_the_nearer_object_hides_the_other_in_its_new_place(sprites, foot, order):
    before, _ = scene_pair("diagonal", 1, np.random.default_rng(0), sprites)
    other, thing = (replace(each, size=40.0) for each in before.things)
    changed = replace(thing, x=other.x, foot=other.foot + foot)
    scenes = (replace(before, things=(other, each)) for each in (replace(thing, foot=other.foot - foot), changed))
    _, fields = describe_case("diagonal", *scenes, sprites)
    names = {"changed": thing.name, "other": other.name}
    assert fields["objects"] == [names[each] for each in order]
    visible = sum(fields["new_place"][1::2])
    assert visible == (40 * 40 if foot > 0 else 4 * 40)


def test_a_case_is_taken_if_the_true_result_is_right_after_the_vae_too(model, monkeypatch):
    judge = Judge.load()
    assert can_be_judged(CASES[0], model, judge)
    monkeypatch.setattr(make_move_cases, "reconstruct_truth", lambda pipe, case: torch.zeros(3, 128, 128))
    assert not can_be_judged(CASES[0], model, judge)


def test_the_cases_that_ship():
    assert [case.kind for case in CASES] == list(KINDS) * 43
    for case in CASES:
        before, after = case.pictures
        assert before.shape == after.shape == (3, 128, 128)
        old, new = case.places
        assert old.any() and (new.any() or case.kind == "remove")
        assert case.word in case.objects and case.word in case.prompt.replace(",", "").split()
        outside = ~(old | new)
        assert (
            float((before - after).abs()[:, outside].mean()) < 0.05 < float((before - after).abs()[:, old ^ new].mean())
        )


def test_the_shift_is_that_of_the_true_masks():
    for case in CASES:
        if len(case.objects) == 1 and case.by is not None:  # nothing hides a part of it
            (y0, x0), (y1, x1) = (mask.nonzero().double().mean(0).tolist() for mask in case.places)
            assert abs(x1 - x0 - case.by[0]) < 1 and abs(y1 - y0 - case.by[1]) < 1, case.name
            areas = [float(mask.sum()) for mask in case.places]
            assert math.sqrt(areas[1] / areas[0]) == pytest.approx(case.scale, rel=0.05), case.name


def test_a_duplicate_in_the_fog_is_as_clear_as_the_first(sprites):
    """Two things of the same name have one mask, and both are seen through less fog than the place."""
    before, after = scene_pair("duplicate", 0, np.random.default_rng(0), sprites)
    fog = [replace(scene, attribute="fog", strength=1.0) for scene in (before, after)]
    pictures, _ = describe_case("duplicate", *fog, sprites)
    masks = render(after, sprites).masks
    assert int(masks[before.things[0].name].sum()) > 1.8 * int(
        render(before, sprites).masks[before.things[0].name].sum()
    )
    half = pictures.shape[1] // 2
    core = render(before, sprites).masks[before.things[0].name]
    change = np.abs(pictures[:, :half][core].astype(int) - pictures[:, half:][core])
    assert change.mean() < 2  # levels of 255, at the border with the other's shadow; measured: 0.1


FIELDS = {"kind": "horizontal", "prompt": "a cat", "prompt_after": "a cat", "word": "cat", "by": [9, 0], "scale": 1.0}
FIELDS |= {"objects": ["cat"], "old_place": [0, 4], "new_place": [9, 4]}


@pytest.mark.parametrize(
    "values, message",
    [
        ([], "must be an object that maps names to cases"),
        ({}, "must be an object that maps names to cases"),
        ({"0": {}}, "case '0' must have kind, prompt, prompt_after, word"),
        ({"../0": FIELDS}, "this cannot be one"),
        ({"0": FIELDS | {"objects": ["dog"]}}, "a list of words, among them 'cat'"),
        ({"0": FIELDS | {"by": 9}}, "an object is moved by"),
        ({"0": FIELDS | {"scale": None}}, "the scale of an object"),
        ({"0": FIELDS | {"new_place": [9]}}, "a mask is a list of starts and lengths"),
    ],
)
def test_a_mistake_in_a_file_of_cases_is_one_line(tmp_path, values, message):
    (tmp_path / "cases.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as error:
        read_move_cases(tmp_path)
    assert "cases.json: " in str(error.value) and "\n" not in str(error.value)


# --- figures


class Seen:
    """A verdict of a picture by hand."""

    def __init__(self, mask, named, detected=()):
        self.mask, self.named, self.detected = mask, named, detected

    def masks(self, word):
        return self.mask[None].float()

    def likeliest_objects(self, count):
        return [set(self.named[:count])]

    def detected_objects(self):
        return [set(self.detected)]


def box(left, top=40, side=20):
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def case_by_hand(kind, old, new, by=(40, 0), scale=1.0, objects=("cat",)):
    case = MoveCase(
        "0",
        kind,
        None,
        prompt="a cat",
        prompt_after="a cat",
        word="cat",
        by=None if kind == "remove" else by,
        scale=None if kind == "remove" else scale,
        objects=objects,
        old_runs=encode_runs(old.numpy()),
        new_runs=encode_runs(new.numpy()),
    )
    before, after = torch.zeros(3, 128, 128), torch.zeros(3, 128, 128)
    before[:, old], after[:, new] = 1, 1
    case.__dict__["pictures"] = before, after
    return case


OLD, NEW = box(20), box(60)


def success(case, mask, named=("cat", "dog"), detected=()):
    return measure_move(case, case.pictures[1], Seen(mask, named, detected))["success"]


def test_an_object_is_moved_if_it_is_there_and_no_longer_here():
    case = case_by_hand("horizontal", OLD, NEW)
    assert success(case, NEW) == success(case, box(68)) == 1
    assert success(case, box(69)) == success(case, OLD) == success(case, torch.zeros_like(OLD)) == 0
    assert success(case, NEW, named=("dog", "cat")) == 0
    left = box(60, side=20)
    left[40:60, 20:24] = True  # a fifth of the old place
    assert success(case, left) == 0
    figures = measure_move(case, case.pictures[1], Seen(left, ["cat"]))
    assert figures["vacated"] == pytest.approx(0.2) and figures["size_ratio"] == pytest.approx(math.sqrt(1.2))


def test_an_object_is_resized_if_its_size_is_nearer_to_the_true_one():
    case = case_by_hand("enlarge", box(40, 40, 20), box(35, 35, 30), by=(0, 0), scale=1.5)
    sides = {24: 0, 25: 1, 30: 1, 36: 1, 37: 0}  # of 30, by a factor of up to the root of 1.5
    assert {side: success(case, box(50 - side // 2, 50 - side // 2, side)) for side in sides} == sides
    assert success(case, box(60, 35, 30)) == 0


def test_an_object_moved_in_depth_has_its_new_size_and_place_and_leaves_the_old_one():
    old, new = box(40, 40, 30), box(45, 45, 20)
    larger = box(43, 43, 24)  # nearer to the true size, but over a third of what the object leaves
    for kind, expected in (("shrink", 1), ("depth", 0)):
        case = case_by_hand(kind, old, new, by=(0, 0), scale=2 / 3)
        assert success(case, new) == 1 and success(case, larger) == expected and success(case, old) == 0
    case = case_by_hand("depth", OLD, box(60, 35, 30), scale=1.5)
    sizes = {box(60, 35, 30): 1, box(65, 40, 20): 0, box(75, 35, 30): 0}
    assert [success(case, mask) for mask in sizes] == list(sizes.values())


def test_an_object_is_duplicated_if_both_places_are_covered():
    case = case_by_hand("duplicate", OLD, NEW)
    assert success(case, OLD | NEW) == 1
    assert success(case, OLD | box(68)) == 1 and success(case, OLD | box(69)) == 0
    assert success(case, NEW) == 0 and success(case, OLD | NEW | box(90)) == 0


def test_an_object_is_removed_if_the_judge_sees_none():
    case = case_by_hand("remove", OLD, torch.zeros_like(OLD), objects=("dog", "cat"))
    nothing = torch.zeros_like(OLD)
    assert success(case, nothing, named=("dog", "cat")) == 1
    assert success(case, nothing, named=("cat", "dog")) == success(case, OLD, ("dog", "cat"), detected=["cat"]) == 0


def test_decibels_are_of_the_background_the_hole_and_the_object():
    case = case_by_hand("horizontal", OLD, NEW)
    after = case.pictures[1].clone()
    after[:, OLD] += 0.2
    figures = measure_move(case, after, Seen(NEW, ["cat"]))
    assert (
        figures["psnr_background"]
        == figures["psnr_object"]
        == measure_move(case, case.pictures[1], Seen(NEW, ["cat"]))["psnr"]
    )
    assert figures["psnr_hole"] == pytest.approx(20, abs=1e-3)  # an error of a tenth of the range
    assert figures["psnr"] == pytest.approx(20 + 10 * math.log10(128**2 / 400), abs=1e-3)


def test_the_hole_is_what_is_left_and_the_background_what_is_equal_in_all_colours():
    new = box(30)
    case = case_by_hand("horizontal", OLD, new)
    case.pictures[1][:, box(100)] = case.pictures[0][:, box(100)]
    case.pictures[0][:, OLD & new] = 0.5
    case.pictures[1][0, box(100)] += 0.5  # a shadow that is only red
    after = case.pictures[1].clone()
    after[:, OLD & new] += 0.2
    after[0, box(100)] += 0.2
    figures = measure_move(case, after, Seen(new, ["cat"]))
    assert figures["psnr_hole"] == figures["psnr_background"] == 60
    two = case_by_hand("duplicate", OLD, NEW)
    after = two.pictures[1].clone()
    after[:, OLD] += 0.2
    assert measure_move(two, after, Seen(OLD | NEW, ["cat"]))["psnr_object"] == 60


# --- runs


def test_the_row_of_our_method_is_the_edit_of_the_pipeline_to_the_bit(model):
    case = CASES[0]
    run = model.invert(case.pictures[0], case.prompt, method="direct", steps=2)
    edit = model.edit(run, case.prompt, **SETTINGS, **case.edit_options())
    assert torch.equal(METHODS["move"].edit(model, run, case), edit.picture)
    others = {name: METHODS[name].edit(model, run, case) for name in METHODS if case.kind not in METHODS[name].without}
    assert len(others) == len(METHODS) - 1
    pictures = list(others.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


PARTS = {
    "noise": dict(noise=True),
    "cross": dict(cross=True),
    "cross+self": dict(cross=True, self_=True),
    "cross+self+noise": dict(cross=True, self_=True, noise=True),
    "cross+self+noise+blend": dict(cross=True, self_=True, noise=True, blend=True),
    "move": dict(cross=True, self_=True, noise=True, blend=True, latents=True),
    "true-mask": dict(cross=True, self_=True, noise=True, blend=True, latents=True),
}


def test_each_row_has_the_parts_of_our_method_that_it_names(model, monkeypatch):
    edited, masks, plan_move = [], [], move_benchmark.plan_move

    def run_edits(components, origin, targets):
        edited.append(targets[0])
        return [SimpleNamespace(picture=None)]

    def plan(pipe, run, case, mask, options):
        masks.append(mask)
        return plan_move(pipe, run, case, mask, options)

    monkeypatch.setattr(move_benchmark, "run_edits", run_edits)
    monkeypatch.setattr(move_benchmark, "plan_move", plan)
    case = CASES[0]
    run = model.invert(case.pictures[0], case.prompt, method="direct", steps=2)
    for name, expected in PARTS.items():
        METHODS[name].edit(model, run, case)
        plan_, warp = edited[-1].plan, edited[-1].warp
        parts = {
            "cross": plan_.movement is not None and bool(plan_.cross_alpha.any()),
            "self_": plan_.movement is not None and bool(plan_.self_alpha.any()),
            "noise": not torch.equal(warp.noise_cells, torch.arange(len(warp.noise_cells))),
            "blend": warp.keeps_rest,
            "latents": bool(warp.until.any()),
        }
        assert {part for part, has in parts.items() if has} == set(expected), name
    assert masks[:-1] == [None] * 6 and torch.equal(masks[-1], case.places[0])
    assert edited[0].plan.movement is None and not edited[0].plan.cross_alpha.any()  # the noise alone


def test_other_methods_are_told_the_same_move(monkeypatch):
    calls = []

    def method(pipe, run, *arguments, **options):
        calls.append((*arguments, options))
        return SimpleNamespace(picture=None)

    run = SimpleNamespace()
    pipe = SimpleNamespace(edit=partial(method, None))
    monkeypatch.setattr(move_benchmark, "self_guided_move", method)
    case = case_by_hand("diagonal", OLD, NEW, by=(4, 8), scale=1.5, objects=("dog", "cat"))
    METHODS["self-guidance"].edit(pipe, run, case)
    assert calls[-1] == ("cat", {"by": (4, 8), "scale": 1.5, "others": ["dog"]})
    METHODS["regenerate"].edit(pipe, run, replace(case, prompt_after="a dog"))
    assert calls[-1] == ("a dog", {"cross_replace": 0.0, "self_replace": 0.0})


def test_an_edit_names_all_objects_from_back_to_front():
    move, remove = (case_by_hand(kind, OLD, NEW, objects=("dog", "cat", "pig")) for kind in ("horizontal", "remove"))
    assert list(move.edit_options()["move"]) == ["dog", "cat", "pig"] and move.edit_options()["move"]["pig"] == (0, 0)
    options = remove.edit_options()
    assert options["move"] == {"dog": (0, 0), "pig": (0, 0)} and list(options["remove"]) == ["cat"]


def test_pasted_latents_fill_the_hole_with_what_the_object_covers(model, monkeypatch):
    case = CASES[0]
    run = model.invert(case.pictures[0], case.prompt, method="direct", steps=2)
    old, new = case.places
    decoded, decode = [], Components.decode
    monkeypatch.setattr(Components, "decode", lambda self, x: decoded.append(x.cpu()) or decode(self, x))
    change = (METHODS["paste"].edit(model, run, case) - run.picture).abs().mean(0)
    _, target = plan_move(model, run, case)
    hole = target.warp.area & (target.warp.until == 0)
    filled = run.latents[-1:].flatten(2)[..., target.warp.noise_cells[hole.flatten()]]
    assert hole.any() and any(x.shape == run.latents[-1:].shape and torch.equal(x[..., hole], filled) for x in decoded)
    assert min(float(change[old & ~new].mean()), float(change[new & ~old].mean())) > 0.2
    assert float(change[(case.pictures[0] == case.pictures[1]).all(0)].mean()) < 0.05


def test_the_rows_that_find_the_place_count_for_feature_guidance(model, monkeypatch):
    case, counter = CASES[0], RowCounter()
    run = model.invert(case.pictures[0], case.prompt, method="direct", steps=2)
    calls = []
    monkeypatch.setattr(
        move_benchmark, "feature_guided_move", lambda *arguments, **options: calls.append(options) or run
    )
    METHODS["feature-guidance"].edit(model.counting(counter), run, case)
    assert counter.rows == 2 and calls == [{"by": case.by, "scale": case.scale}]


def test_finished_cases_are_not_run_again_and_a_method_runs_only_what_it_can_edit(model, tmp_path, monkeypatch):
    cases, methods = [CASES[0], CASES[6]], ["paste", "regenerate"]
    assert [names for _, names in jobs_of(cases, methods)] == [["paste"], ["regenerate"]]
    rows = run_benchmark(model, cases, methods, tmp_path, steps=2)
    assert [(row["method"], row["kind"]) for row in rows] == [("paste", "horizontal"), ("regenerate", "remove")]
    monkeypatch.setattr(move_benchmark, "run_case", lambda *arguments: pytest.fail("a finished case was run"))
    assert run_benchmark(model, cases, methods, tmp_path, steps=2) == rows
    with pytest.raises(ValueError, match="holds the benchmark of other cases or another model"):
        run_benchmark(model, cases, methods, tmp_path, steps=3)
    result_files(tmp_path).row_file(cases[0], "paste").write_text("{}")
    with pytest.raises(ValueError, match="not the figures of case 000 by paste"):
        run_benchmark(model, cases, methods, tmp_path, steps=2)


# --- tables


def row(case, kind, method, success, psnr, **more):
    return {"case": case, "kind": kind, "method": method, "success": success, "psnr": psnr, "rows": 4.0} | {
        "seconds": 1.0,
        **more,
    }


ROWS = [
    row("0", "horizontal", "paste", 1.0, 20.0, psnr_hole=10.0),
    row("1", "diagonal", "paste", 0.0, 18.0),
    row("0", "horizontal", "move", 1.0, 21.0, psnr_hole=12.0, psnr_background=30.0),
    row("1", "diagonal", "move", 1.0, 20.0, psnr_background=28.0),
    row("2", "enlarge", "move", 0.0, 25.0, psnr_background=29.0),
    row("3", "shrink", "move", 1.0, 23.0, psnr_background=31.0),
    row("4", "remove", "move", 1.0, 60.0, psnr_background=60.0),
]


def test_a_summary_by_hand():
    summaries = summarize_moves(ROWS, ["paste", "move"])
    summary = summaries["move"]
    assert summary["moved_horizontal"][0] == summary["remove"][0] == 100 and summary["resize"][0] == 50
    assert summary["resize"][1] == pytest.approx(100 * interval([0.0, 1.0])[1])
    assert summary["background_db"] == interval([30.0, 28.0, 29.0, 31.0])  # without the object that is removed
    assert summary["over_paste_moved_diagonal"][0] == 2 and "over_paste_resize" not in summary
    assert summary["hole_db_moved_horizontal"][0] == 12 and summaries["paste"]["whole_db"][0] == 19
    assert "duplicate" not in summary
    copied = summarize_moves([*ROWS, row("5", "duplicate", "move", 1.0, 60.0, psnr_background=60.0)], ["move"])["move"]
    assert copied["duplicate"][0] == 100 and copied["background_db"] == summary["background_db"]


def test_the_last_line_and_the_tables():
    summaries = summarize_moves(ROWS, ["paste", "move"])
    figures = json.loads(json_line(summaries))
    assert figures["cases"] == 5 and figures["moved_horizontal"] == 100 and figures["moved_horizontal_ci"] is None
    assert figures["resize_ci"] == 98 and figures["whole_db"] == 22.25 and figures["paste_whole_db"] == 19
    assert list(figures)[:3] == ["cases", "moved_horizontal", "moved_horizontal_ci"]
    lines = markdown_tables(summaries).splitlines()
    assert lines[0].startswith("| method | moved horizontal % | moved diagonal % |")
    assert "| move | 100 | 100 | – | 50.0 ± 98.0 | – | 100 |" in lines
    assert json.loads(json_line(summarize_moves(ROWS[:2], ["paste"]))) == {
        "cases": 2,
        "paste_whole_db": 19,
        "paste_whole_db_ci": 1.96,
    }


def test_the_command_prints_its_tables_and_a_last_line_of_json(tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main.main(["bench-moves", "--methods", "vae,paste,move", "--count", "1", "--steps", "1", "-o", str(out)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert figures["cases"] == 1 and "moved_horizontal" in figures and "paste_whole_db" in figures
    assert (out / "table.csv").read_text().startswith("case,kind,method,success,psnr")
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height > 5 * 128
        assert "Methods: " in sheet.text["parameters"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--methods", "best"], "the methods are vae, paste, "),
        (["--count", "302"], "--count must lie between 1 and 301"),
        (["--cases", "nowhere"], "nowhere/cases.json: no such file"),
        (["--steps", "0"], "steps"),
    ],
)
def test_wrong_options_of_the_command_are_an_error_in_one_line(tmp_path, capsys, options, message):
    assert main.main(["bench-moves", "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
