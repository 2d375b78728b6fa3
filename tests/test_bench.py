"""The benchmark of edits: its cases, its figures, what it keeps, and what it says."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minip2p
from minip2p.cli import main
from minip2p.evaluation import edit_benchmark, tables
from minip2p.evaluation.make_cases import KINDS, scene_pair
from minip2p.evaluation.pie_bench import Case, decode_runs, encode_runs, read_cases
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import interval, mse, pie_bench_masked_metrics, psnr, structure
from minip2p.tiny.judge import Judge
from minip2p.tiny.scenes import is_held_out

CASES = read_cases()


@pytest.fixture(scope="module")
def model():
    return minip2p.load()


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_runs_are_a_mask_and_back(bits):
    mask = np.array(bits)[None]
    assert torch.equal(decode_runs(encode_runs(mask), mask.shape), torch.from_numpy(mask))


def test_runs_by_hand():
    assert encode_runs(np.array([[0, 1, 1], [1, 0, 1]], bool)) == [1, 3, 5, 1]
    assert decode_runs([1, 3, 5, 9], (2, 3)).tolist() == [[False, True, True], [True, False, True]]  # cut at the end


def test_the_cases_that_ship():
    """301 of seven kinds, 43 each, each with its picture, its true mask and prompts that differ in what is edited."""
    assert len(CASES) == 301 and len({case.name for case in CASES}) == 301
    assert {kind: sum(case.kind == kind for case in CASES) for kind in KINDS} == dict.fromkeys(KINDS, 43)
    for case in CASES:
        with Image.open(case.picture) as picture:
            assert picture.size == (128, 128)
        mask, kept = case.mask((128, 128)), decode_runs(list(case.kept), (128, 128))
        assert mask.any() and not (mask & kept).any() and (mask.all() == (case.kind == "style"))
        assert case.source != case.target and case.expected is not None
        words = {name: case.source if "source" in name else case.target for name in case.blend}
        assert all(word in re.findall(r"\w+", words[name]) for name, given in case.blend.items() for word in given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_changes_what_it_says_and_nothing_else(kind):
    for number in range(5):
        before, after = scene_pair(kind, number)
        assert is_held_out(before) or is_held_out(after)
        names = [{thing.name for thing in scene.things} for scene in (before, after)]
        same = {
            "things": names[0] == names[1],
            "place": before.background == after.background,
            "style": before.style == after.style,
        }
        changed = {"background": "place", "style": "style", "colour": None}.get(kind, "things")
        assert same == {name: name != changed for name in same}
        if kind == "colour":
            (old,), (new,) = before.things, after.things
            assert old.colour != new.colour and new.colour in after.caption
        assert scene_pair(kind, number) == (before, after)


def test_the_committed_cases_are_those_that_the_recipe_makes():
    for case, kind in zip(CASES[:7], KINDS, strict=True):
        before, after = scene_pair(kind, 0)
        assert (case.kind, case.source, case.target) == (kind, before.caption, after.caption)


def test_filled_figures_are_of_pictures_that_are_black_inside_of_the_mask():
    """PIE-Bench's: the error outside, over all pixels. Of 144, 36 outside of the mask differ by .5 (on [0, 1])."""
    a, b, mask = torch.zeros(3, 12, 12), torch.zeros(3, 12, 12), torch.zeros(12, 12, dtype=torch.bool)
    mask[:6], b[:, :, :6], want = True, 1.0, 0.25 * 36 / 144
    found = pie_bench_masked_metrics(a, b, mask)
    assert found["mse_filled"] == pytest.approx(want) and found["psnr_filled"] == pytest.approx(-10 * math.log10(want))
    assert mse(a, b, ~mask) == pytest.approx(2 * want) and psnr(a, b) < found["psnr_filled"]
    assert all(
        map(math.isnan, pie_bench_masked_metrics(a, b, torch.ones_like(mask)).values())
    )  # all may change: nothing to say


def test_structure_distance_by_hand():
    """Two places, at right angles and then alike: S differs by 1 in two of four entries."""
    a, b = torch.tensor([[2.0, 0], [0, 3]]), torch.tensor([[1.0, 0], [5, 0]])
    assert structure(a, b) == pytest.approx(0.5) and structure(a, 7 * a) == pytest.approx(0)


def test_an_interval_is_1_96_standard_errors():
    assert interval([1.0, 2.0, 3.0, None, math.nan]) == pytest.approx((2.0, 1.96 / math.sqrt(3)))
    assert all(map(math.isnan, interval([]))) and interval([2.0])[0] == 2.0


def test_what_the_judge_finds(model):
    """The renders themselves show their own objects, colours, place and style, and so not their targets'."""
    judge, right, wrong = Judge.load(), 0, 0
    cases = [case for case in CASES[:70] if case.kind in ("object", "colour", "background", "style", "two")]
    for case in cases:
        picture = torch.from_numpy(np.asarray(Image.open(case.picture)).copy()).permute(2, 0, 1) / 127.5 - 1
        words = case.source.replace(",", "").split(" ")
        own = {"objects": [w for w in judge.config.objects if w in words], "gone": []}
        right += judge.finds(picture, own)
        wrong += judge.finds(picture, case.expected)
        assert not judge.finds(picture, own | {"gone": own["objects"]}) or not right
    assert right >= 0.95 * len(cases) and wrong <= 0.05 * len(cases)


def test_the_judge_asks_for_the_colour_place_and_style_that_were_to_change(model):
    """A render shows its own and no other: changed to another word, each of them alone is missed."""
    judge, kinds = Judge.load(), {"colour": "colours", "background": "background", "style": "style"}
    for kind, key in kinds.items():
        hits = misses = 0
        for case, (before, _) in [(CASES[7 * n + KINDS.index(kind)], scene_pair(kind, n)) for n in range(12)]:
            picture = fit_image(read_image(case.picture), (128, 128), "stretch")
            own = (
                {"colours": {thing.name: thing.colour for thing in before.things}}
                if key == "colours"
                else {key: getattr(before, key)}
            )
            objects = {"objects": [thing.name for thing in before.things], "gone": []}
            hits += judge.finds(picture, objects | own)
            misses += not judge.finds(picture, objects | {key: case.expected[key]})
        assert hits >= 11 and misses >= 11, (kind, hits, misses)


def test_a_method_beside_another_and_what_is_done_is_not_done_again(model, tmp_path):
    judge, methods = Judge.load(), ["vae", "ddim", "direct+mask"]
    rows = edit_benchmark.run_benchmark(model, CASES[:2], methods, tmp_path, steps=2, judge=judge)
    before = model.rows
    assert (
        edit_benchmark.run_benchmark(model, CASES[:2], methods, tmp_path, steps=2, judge=judge) == rows
        and model.rows == before
    )
    assert [(row["method"], row["case"]) for row in rows] == [(m, c.name) for m in methods for c in CASES[:2]]
    (tmp_path / "rows" / "ddim" / f"{CASES[1].name}.json").unlink()
    again = edit_benchmark.run_benchmark(model, CASES[:2], methods, tmp_path, steps=2, judge=judge)
    assert model.rows - before == rows[3]["rows"]
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]
    made = tables.summary(rows, methods)
    gain = [a["psnr"] - b["psnr"] for a, b in zip(rows[4:], rows[2:4], strict=True)]
    assert made["direct+mask"]["gain"] == pytest.approx(interval(gain)) and made["ddim"]["gain"][0] == 0
    assert made["vae"]["rows"][0] == 0 and made["ddim"]["cases"] == (2, 0)
    for bad in ({"steps": 3}, {"judge": None}):
        with pytest.raises(ValueError, match="holds the benchmark of other cases or another model"):
            edit_benchmark.run_benchmark(model, CASES[:2], methods, tmp_path, **{"steps": 2, "judge": judge, **bad})
    file = tmp_path / "rows" / "vae" / f"{CASES[0].name}.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="not the figures of case 000 by vae: remove it"):
        edit_benchmark.run_benchmark(model, CASES[:2], methods, tmp_path, steps=2, judge=judge)


def test_a_method_that_polishes_keeps_more_of_what_may_not_change(model):
    case = next(case for case in CASES if case.kind == "colour")
    picture = fit_image(read_image(case.picture), (128, 128), "stretch")
    plain, polished = (
        edit_benchmark.edit_case(model, case, edit_benchmark.METHODS[name], picture, 2)
        for name in ("direct+mask", "direct+mask+polish")
    )
    outside = ~case.mask((128, 128))
    assert psnr(picture, polished, outside) > psnr(picture, plain, outside) + 0.1  # .16 dB


def test_a_method_with_the_true_mask_is_blended_by_it(model):
    """But for a style, of which all may change."""
    case = next(case for case in CASES if case.kind == "object")
    blend = edit_benchmark.edit_options(model, case, edit_benchmark.METHODS["direct+true-mask+polish"])["blend"]
    assert torch.equal(blend.mask.bool(), case.mask((128, 128)))
    style = next(case for case in CASES if case.kind == "style")
    assert edit_benchmark.edit_options(model, style, edit_benchmark.METHODS["direct+true-mask+polish"])["blend"] is None


def pie(folder, **changes):
    """A folder of PIE-Bench's layout, with one case as the published file has it."""
    (folder / "annotation_images" / "0_random").mkdir(parents=True)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "annotation_images" / "0_random" / "a b.png")
    case = {
        "image_path": "0_random/a b.png",
        "original_prompt": "a [red] car on the street",
        "editing_prompt": "a [blue] car on the street",
        "editing_instruction": "",
        "editing_type_id": "6",
        "blended_word": "car car",
        "mask": [600, 50],
    } | changes
    (folder / "mapping_file.json").write_text(json.dumps({"000": case}))
    return folder


def test_a_mask_is_of_the_pictures_own_pixels_whatever_size_it_is_measured_at(tmp_path):
    """40 × 60 pixels, of which the upper 10 rows may change: a quarter at every size, and the border."""
    (case,) = read_cases(pie(tmp_path, mask=[0, 600]))
    for rows, columns in ((40, 60), (80, 120), (128, 128)):
        mask = case.mask((rows, columns))
        assert mask[: rows // 4].all() and not mask[rows // 4 : -1, 1:-1].any()
    shipped = CASES[0]
    small, large = shipped.mask((128, 128)), shipped.mask((512, 512))
    assert torch.equal(large, small.repeat_interleave(4, 0).repeat_interleave(4, 1))
    assert torch.equal(shipped.area(shipped.kept, (128, 128)), decode_runs(list(shipped.kept), (128, 128)))


def test_pie_bench_is_read_and_edited_as_published(model, tmp_path):
    (case,) = read_cases(pie(tmp_path))
    assert (case.source, case.target) == ("a red car on the street", "a blue car on the street")
    mask = case.mask((40, 60))
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[10, :50].all() and not mask[10, 51:59].any()
    said = edit_benchmark.edit_options(model, case, edit_benchmark.METHODS["direct"])
    assert (said["cross"], said["self_replace"], said["kind"], said["reweight"]) == (0.4, 0.6, "refine", {"car": 2.0})
    assert (said["blend"].source, said["blend"].target, said["blend"].start) == (("car",), ("car",), 0.2)
    alone = edit_benchmark.edit_options(model, case, edit_benchmark.METHODS["direct+masactrl"])
    assert alone["blend"] is alone["reweight"] is None and alone["cross"] == alone["self_replace"] == 0
    (row,) = edit_benchmark.run_benchmark(model, [case], ["direct"], tmp_path / "out", steps=2)
    assert row["success"] is None if "success" in row else row["psnr"] > 5


@pytest.mark.parametrize(
    "blended, source, target",
    [
        ("Car bike", ("Car",), ()),
        ("bike blue", (), ("blue",)),
        ("bike plane", None, None),
        ("", None, None),
    ],
)
def test_a_word_that_its_prompt_does_not_have_is_neither_blended_nor_stronger(model, tmp_path, blended, source, target):
    (case,) = read_cases(pie(tmp_path, blended_word=blended))
    said = edit_benchmark.edit_options(model, case, edit_benchmark.METHODS["ddim"])
    if source is None:
        assert said["blend"] is None and not said.get("reweight")
    else:
        assert (said["blend"].source, said["blend"].target) == (source, target)
        assert said["reweight"] == dict.fromkeys(target, 2.0)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"mask": [1]}, "a mask is a list of starts and lengths"),
        ({"mask": None}, "a mask is a list"),
        ({"image_path": "../../x.png"}, "leads out of the folder"),
        ({"editing_prompt": 3}, "must have image_path"),
        ({"kept": None}, "a mask is a list"),
        ({"kept": [2, -1]}, "a mask is a list"),
        ({"blend": {"words": ["car"]}}, "blend has lists of words under some of source, target"),
        ({"blend": {"source": "car"}}, "blend has lists of words"),
        ({"blend": []}, "blend has lists of words"),
    ],
)
def test_cases_that_are_none_are_one_clear_line(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says) as error:
        read_cases(pie(tmp_path, **changes))
    assert "mapping_file.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["..", "", "a/b", "../x", "a\\b"])
def test_a_case_whose_name_is_no_files_is_one_clear_line(tmp_path, name):
    file = pie(tmp_path) / "mapping_file.json"
    file.write_text(json.dumps({name: json.loads(file.read_text())["000"]}))
    with pytest.raises(ValueError, match="its name is that of its files, and cannot be one"):
        read_cases(tmp_path)


def test_the_command_prints_its_table_and_last_a_line_of_json(tmp_path, capsys):
    said = ["bench-edits", "--methods", "vae,direct", "--count", "1", "--steps", "1", "-o", str(tmp_path / "out")]
    assert main.main([*said, "--dtype", "float32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = json.loads(lines[-1])
    assert last["cases"] == 1 and last["direct_rows"] > last["vae_rows"] == 0 and lines[0].startswith("| method | str")
    assert sum(line.startswith("| direct |") for line in lines) == 2
    table = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert len(table) == 3 and table[0].startswith("case,kind,method,psnr")
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.height > 3 * 256 and (tmp_path / "out" / "pictures" / "direct" / "000.png").exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "style"},
        {"kind": ["a"]},
        {"psnr": math.inf},
        {"psnr": True},
        {"psnr": "much"},
        {"rows": None, "seconds": []},
        {"case": "001"},
    ],
)
def test_rows_that_are_damaged_are_one_clear_line(model, tmp_path, damage):
    edit_benchmark.run_benchmark(model, CASES[:1], ["vae"], tmp_path, steps=1)
    file = edit_benchmark.row_file(tmp_path, CASES[0], "vae")
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(ValueError, match="not the figures of case 000 by vae: remove it"):
        edit_benchmark.run_benchmark(model, CASES[:1], ["vae"], tmp_path, steps=1)
    file.write_text(json.dumps({"case": "000", "method": "vae", "kind": CASES[0].kind}))
    with pytest.raises(ValueError, match="not the figures of case 000 by vae: remove it"):
        edit_benchmark.run_benchmark(model, CASES[:1], ["vae"], tmp_path, steps=1)


def test_a_picture_that_is_gone_is_made_again(model, tmp_path):
    edit_benchmark.run_benchmark(model, CASES[:1], ["vae"], tmp_path, steps=1)
    picture = edit_benchmark.picture_file(tmp_path, CASES[0], "vae")
    before = picture.read_bytes()
    picture.unlink()
    edit_benchmark.run_benchmark(model, CASES[:1], ["vae"], tmp_path, steps=1)
    assert picture.read_bytes() == before


def test_a_picture_that_is_broken_is_said_before_anything_is_run_and_may_be_mended(model, tmp_path):
    (case,) = read_cases(pie(tmp_path))
    whole = case.picture.read_bytes()
    case.picture.write_bytes(whole[:50])
    with pytest.raises(ValueError, match="a b.png: "):
        edit_benchmark.run_benchmark(model, [case], ["vae"], tmp_path / "out", steps=1)
    assert not (tmp_path / "out").exists()
    case.picture.write_bytes(whole)
    assert len(edit_benchmark.run_benchmark(model, [case], ["vae"], tmp_path / "out", steps=1)) == 1


def test_a_folder_of_another_benchmark_is_told_by_what_differs(model, tmp_path):
    edit_benchmark.run_benchmark(model, CASES[:1], ["vae"], tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"holds the benchmark of .* \(of other cases, steps\): choose another folder"):
        edit_benchmark.run_benchmark(model, CASES[:2], ["vae"], tmp_path, steps=2)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "\ufeff[]"])
def test_a_mapping_that_is_none_is_one_clear_line(tmp_path, content):
    (tmp_path / "mapping_file.json").write_text(content)
    with pytest.raises(ValueError, match="mapping_file.json: (is not JSON|must be an object)"):
        read_cases(tmp_path)


@pytest.mark.parametrize(
    "options, says",
    [
        (["--methods", "best"], "the methods are vae, ddim, "),
        (["--count", "0"], "--count must lie between 1 and 301"),
        (["--cases", "nowhere"], "nowhere/mapping_file.json: no such file"),
        (["--steps", "0"], "steps"),
    ],
)
def test_a_benchmark_that_cannot_be_is_one_clear_line(tmp_path, capsys, options, says):
    assert main.main(["bench-edits", "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_what_the_judge_should_find_a_case_is_pie_benchs(model):
    case = Case("a", "0", CASES[0].picture, "a cat", "a dog", [])
    assert (
        case.mask((4, 5)).sum() == 14
        and edit_benchmark.edit_options(model, case, edit_benchmark.METHODS["ddim"])["blend"] is None
    )
