"""The benchmark of edits: the options of each method, the figures, and continuing what was begun."""

import json
import math

import pytest
import torch
from pie_cases import write_pie_case
from PIL import Image

from minip2p.cli import main
from minip2p.evaluation import edit_benchmark
from minip2p.evaluation.edit_benchmark import (
    METHODS,
    Networks,
    edit_case,
    edit_options,
    measure_edit,
    methods_for,
    published_masactrl,
    published_plug_and_play_attention,
    result_files,
    run_benchmark,
)
from minip2p.evaluation.pie_bench import Case, published_picture, read_cases
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import psnr
from minip2p.tiny.judge import Judge

CASES = read_cases()


def case_of(kind):
    return next(case for case in CASES if case.kind == kind)


def test_methods_are_compared_case_by_case_and_finished_cases_are_not_run_again(model, tmp_path, monkeypatch):
    networks, methods = Networks(Judge.load()), ["vae", "ddim", "direct+mask"]
    calls = []
    monkeypatch.setattr(
        edit_benchmark, "edit_case", lambda *arguments: calls.append(arguments[1].name) or edit_case(*arguments)
    )

    def benchmark(**changes):
        return run_benchmark(model, CASES[:2], methods, tmp_path, **{"steps": 2, "networks": networks, **changes})

    rows = benchmark()
    assert [(row["method"], row["case"]) for row in rows] == [(m, c.name) for m in methods for c in CASES[:2]]
    assert len(calls) == 6 and benchmark() == rows and len(calls) == 6
    assert rows[0]["rows"] == 0 < rows[2]["rows"] and {"success", "structure", "psnr_kept"} <= rows[2].keys()
    result_files(tmp_path).row_file(CASES[1], "ddim").unlink()
    repeated = benchmark()
    assert calls[6:] == [CASES[1].name]
    assert [{**row, "seconds": 0} for row in repeated] == [{**row, "seconds": 0} for row in rows]
    for changes in ({"steps": 3}, {"networks": Networks()}):
        with pytest.raises(ValueError, match="holds the benchmark of other cases or another model"):
            benchmark(**changes)
    result_files(tmp_path).row_file(CASES[0], "vae").write_text("{")
    with pytest.raises(ValueError, match="not the figures of case 000 by vae: remove it"):
        benchmark()


def test_a_method_that_polishes_edits_refined_latents(model):
    """They decode to a picture that is nearer to the photograph."""
    case, method = case_of("colour"), METHODS["direct+mask+polish"]
    picture = fit_image(read_image(case.picture), (128, 128), "stretch")
    plain, refined = (model.invert(picture, case.source, steps=2, vae_refine_steps=n) for n in (0, 20))
    assert psnr(picture, refined.picture) > psnr(picture, plain.picture) + 0.5
    options = edit_options(model, case, method)
    assert torch.equal(edit_case(model, case, method, picture, 2), model.edit(refined, case.target, **options).picture)


def test_a_method_with_the_true_mask_is_blended_by_it(model):
    """Except for a style: all of the picture may change then."""
    method = METHODS["direct+true-mask+polish"]
    blend = edit_options(model, case_of("object"), method)["local_blend"]
    assert torch.equal(blend.mask.bool(), case_of("object").mask((128, 128)))
    assert edit_options(model, case_of("style"), method)["local_blend"] is None


def test_a_case_that_ships_is_edited_as_the_models_card_recommends(model):
    case = case_of("background")
    options = edit_options(model, case, METHODS["direct"])
    assert options == {"cross_replace": 0.8, "self_replace": 0.8, "local_blend": None}
    blend = edit_options(model, case, METHODS["direct+mask"])["local_blend"]
    assert (blend.source, blend.without_target) == tuple(tuple(case.blend[k]) for k in ("source", "without_target"))
    assert (blend.pool, blend.threshold, blend.without_threshold) == (False, "otsu", "otsu")
    edit_friendly = edit_options(model, case, METHODS["edit-friendly"])
    assert edit_friendly == {"cross_replace": 0.6, "self_replace": 0.6, "local_blend": None}


def test_a_case_of_pie_bench_is_edited_as_published(model, tmp_path):
    (case,) = read_cases(write_pie_case(tmp_path))
    options = edit_options(model, case, METHODS["direct"])
    assert (options["cross_replace"], options["self_replace"], options["kind"]) == (0.4, 0.6, "refine")
    blend = options["local_blend"]
    assert options["reweight"] == {"car": 2.0} and (blend.source, blend.target, blend.start) == (
        ("car",),
        ("car",),
        0.2,
    )
    without_p2p = edit_options(model, case, METHODS["direct+masactrl"])
    assert without_p2p["local_blend"] is without_p2p["reweight"] is None
    assert without_p2p["cross_replace"] == without_p2p["self_replace"] == 0
    (row,) = run_benchmark(model, [case], ["direct"], tmp_path / "out", steps=2)
    assert "success" not in row and row["psnr"] > 5


@pytest.mark.filterwarnings("ignore:this model was trained without the words")
def test_a_case_of_pie_bench_has_the_published_settings_of_each_method(model, tmp_path, monkeypatch):
    """proximal: .75 over source and target is .5 here. edit-friendly: z at guidance 1, self-attention up to 16²."""
    (case,) = read_cases(write_pie_case(tmp_path))
    shipped, published = methods_for(CASES[0]), methods_for(case)
    assert shipped is METHODS and published.keys() == METHODS.keys()
    changed = {name for name in METHODS if published[name] is not METHODS[name]}
    assert changed == {"proximal", "edit-friendly", "direct+masactrl", "direct+plug-and-play-attention"}
    calls = []
    monkeypatch.setattr(
        type(model),
        "invert",
        lambda self, *args, original=model.invert, **options: (
            calls.append((args[1], options)) or original(*args, **options)
        ),
    )
    picture = fit_image(read_image(case.picture), (128, 128), "stretch")
    for name in changed:
        assert edit_case(model, case, published[name], picture, 4).shape == (3, 128, 128)
    by_method = {name: call for name, call in zip(changed, calls, strict=True)}
    assert by_method["proximal"][1]["quantile"] == 0.5
    assert by_method["edit-friendly"][1].items() >= {"skip": 0.24, "source_guidance_scale": 1.0}.items()
    assert by_method["direct+masactrl"][0] == "" and by_method["proximal"][0] == case.source
    prompt, plug_and_play = by_method["direct+plug-and-play-attention"]
    assert prompt == case.source and plug_and_play["negative_prompt"] == "ugly, blurry, black, low res, unrealistic"
    options = edit_options(model, case, published["edit-friendly"])
    assert options["local_blend"] is options["reweight"] is None and options["self_max_queries"] == 256
    assert (options["cross_replace"], options["self_replace"], options["kind"]) == (0.4, 0.6, "auto")


def test_masactrl_and_plug_and_play_act_on_pie_bench_where_the_published_code_acts(model):
    """On both kinds of rows. MasaCtrl in all levels of the decoder but the coarsest; plug-and-play in all its layers
    but the first, with the maps of a source without words."""
    run = model.generate("a cat on the beach", steps=1, size=(64, 64))
    sites = [site for site in model.unet.sites if site.place == "up"]
    strides, indices = {site.stride for site in sites}, {site.index for site in sites}
    masactrl, plug_and_play = published_masactrl(run, CASES[0]), published_plug_and_play_attention(run, CASES[0])
    assert set(masactrl.sites.strides) == strides - {max(strides)} and masactrl.steps == (0.08, 1.0)
    assert set(plug_and_play.sites.indices) == indices - {0} and plug_and_play.steps == (0.0, 0.5)
    assert masactrl.unconditional and plug_and_play.unconditional
    assert (plug_and_play.run.prompt, plug_and_play.run.negative_prompt) == ("", "")
    assert torch.equal(plug_and_play.run.latents, run.latents)


def test_an_edit_of_pie_bench_is_measured_as_its_file_is_read(model, tmp_path):
    (case,) = read_cases(write_pie_case(tmp_path))
    before, after = torch.zeros(3, 32, 32), torch.full((3, 32, 32), 0.001)
    assert measure_edit(case, before, after, Networks())["mse"] == pytest.approx((0.5 / 255) ** 2, rel=1e-3)
    shipped = measure_edit(CASES[0], before, after, Networks())
    assert shipped["mse"] == pytest.approx((0.0005) ** 2, rel=1e-3)


class PairRecorder:
    """In place of LPIPS or DINO: keeps the pictures that it is shown."""

    name = "recorder"

    def __call__(self, before, after):
        self.pair = before, after
        return 0.25


def test_lpips_sees_black_inside_of_the_mask_and_dino_the_whole_pictures_of_8_bits(tmp_path):
    """As in PIE-Bench's evaluation: lpips_unedit_part and structure_distance."""
    (case,) = read_cases(write_pie_case(tmp_path))
    before, after = torch.zeros(3, 40, 60), torch.full((3, 40, 60), 0.001)
    networks = Networks(lpips=PairRecorder(), dino=PairRecorder())
    figures = measure_edit(case, before, after, networks)
    assert figures["lpips_filled"] == figures["structure_dino"] == 0.25 and "structure" not in figures
    as_read, mask = published_picture(after, ".png"), case.mask((40, 60))
    assert torch.equal(networks.dino.pair[0], before) and torch.equal(networks.dino.pair[1], as_read)
    for shown, picture in zip(networks.lpips.pair, (before, as_read), strict=True):
        assert (shown[:, mask] == -1).all() and torch.equal(shown[:, ~mask], picture[:, ~mask])
    assert networks.settings == {"judge": False, "clip": None, "lpips": "recorder", "dino": "recorder"}
    assert Networks().settings == {"judge": False, "clip": None}


def test_lpips_is_missing_where_everything_may_change(tmp_path):
    (case,) = read_cases(write_pie_case(tmp_path, mask=[0, 40 * 60]))
    figures = measure_edit(case, *torch.zeros(2, 3, 40, 60), Networks(lpips=PairRecorder()))
    assert math.isnan(figures["lpips_filled"])


@pytest.mark.parametrize(
    "blended_word, source, target",
    [
        ("Car bike", ("Car",), ()),
        ("bike blue", (), ("blue",)),
        ("bike plane", None, None),
        ("", None, None),
    ],
)
def test_a_word_that_its_prompt_does_not_have_is_neither_blended_nor_stronger(
    model, tmp_path, blended_word, source, target
):
    (case,) = read_cases(write_pie_case(tmp_path, blended_word=blended_word))
    options = edit_options(model, case, METHODS["ddim"])
    if source is None:
        assert options["local_blend"] is None and not options.get("reweight")
    else:
        assert (options["local_blend"].source, options["local_blend"].target) == (source, target)
        assert options["reweight"] == dict.fromkeys(target, 2.0)


def test_a_case_without_words_is_not_blended(model):
    case = Case("a", "0", CASES[0].picture, "a cat", "a dog", [])
    assert edit_options(model, case, METHODS["ddim"])["local_blend"] is None


def test_every_method_edits(model):
    """Each but the slowest, null-text inversion, on a case of two objects, in one step."""
    case = case_of("two")
    picture = fit_image(read_image(case.picture), (128, 128), "stretch")
    for name, method in METHODS.items():
        if name in ("null-text", "direct+mask+polish", "direct+true-mask+polish"):
            continue
        assert edit_case(model, case, method, picture, 1).shape == (3, 128, 128), name


@pytest.fixture(scope="module")
def vae_run(model, tmp_path_factory):
    """The files of the first case by the method that edits nothing."""
    folder = tmp_path_factory.mktemp("vae")
    run_benchmark(model, CASES[:1], ["vae"], folder, steps=1)
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(vae_run, tmp_path):
    for path, data in vae_run.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row | {"kind": "style"},
        lambda row: row | {"kind": ["a"]},
        lambda row: row | {"psnr": math.inf},
        lambda row: row | {"psnr": True},
        lambda row: row | {"psnr": "much"},
        lambda row: row | {"rows": None, "seconds": []},
        lambda row: row | {"case": "001"},
        lambda row: {name: row[name] for name in ("case", "method", "kind")},
    ],
)
def test_a_damaged_row_is_an_error_in_one_line(model, finished, damage):
    file = result_files(finished).row_file(CASES[0], "vae")
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match="not the figures of case 000 by vae: remove it") as error:
        run_benchmark(model, CASES[:1], ["vae"], finished, steps=1)
    assert "\n" not in str(error.value)


def test_a_missing_picture_is_made_again(model, finished):
    picture = result_files(finished).picture_file(CASES[0], "vae")
    before = picture.read_bytes()
    picture.unlink()
    run_benchmark(model, CASES[:1], ["vae"], finished, steps=1)
    assert picture.read_bytes() == before


def test_a_folder_of_another_benchmark_is_refused_with_what_differs(model, finished):
    with pytest.raises(ValueError, match=r"holds the benchmark of .* \(of other cases, steps\): choose another folder"):
        run_benchmark(model, CASES[:2], ["vae"], finished, steps=2)


def test_a_benchmark_with_lpips_is_another_than_without(model, finished):
    with pytest.raises(ValueError, match=r"\(of other lpips\)"):
        run_benchmark(model, CASES[:1], ["vae"], finished, steps=1, networks=Networks(lpips=PairRecorder()))
    settings = finished / "bench.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lpips": "another"}))
    with pytest.raises(ValueError, match=r"\(of other lpips\)"):
        run_benchmark(model, CASES[:1], ["vae"], finished, steps=1)


def test_a_broken_photograph_is_named_before_anything_runs_and_may_be_mended(model, tmp_path):
    (case,) = read_cases(write_pie_case(tmp_path))
    intact = case.picture.read_bytes()
    case.picture.write_bytes(intact[:50])
    with pytest.raises(ValueError, match="a b.png: "):
        run_benchmark(model, [case], ["vae"], tmp_path / "out", steps=1)
    assert not (tmp_path / "out").exists()
    case.picture.write_bytes(intact)
    assert len(run_benchmark(model, [case], ["vae"], tmp_path / "out", steps=1)) == 1


def test_the_command_prints_its_tables_and_a_last_line_of_json(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["bench-edits", "--methods", "vae,direct", "--count", "1", "--steps", "1", "-o", str(out)]
    assert main.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert figures["cases"] == 1 and figures["direct_rows"] > figures["vae_rows"] == 0
    assert lines[0].startswith("| method | str") and sum(line.startswith("| direct |") for line in lines) == 2
    table = (out / "table.csv").read_text().splitlines()
    assert len(table) == 3 and table[0].startswith("case,kind,method,psnr")
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height > 3 * 256 and (out / "pictures" / "direct" / "000.png").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--methods", "best"], "the methods are vae, ddim, "),
        (["--count", "0"], "--count must lie between 1 and 301"),
        (["--cases", "nowhere"], "nowhere/mapping_file.json: no such file"),
        (["--steps", "0"], "steps"),
    ],
)
def test_wrong_options_of_the_command_are_an_error_in_one_line(tmp_path, capsys, options, message):
    assert main.main(["bench-edits", "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
