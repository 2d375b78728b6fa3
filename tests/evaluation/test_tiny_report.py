"""The report: its figures by hand, its cases, and its bookkeeping with a judge whose verdicts are made up."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p.attention.masks import heatmap_to_mask
from minip2p.evaluation import tiny_cases, tiny_report, workers
from minip2p.io.images import to_pil
from minip2p.metrics.image import iou
from minip2p.p2p.edit_plan import plan_edit
from minip2p.sampling.trajectory import sample
from minip2p.tiny.judge import Judge, JudgeConfig, Verdict
from minip2p.tiny.scenes import ANIMALS, THINGS, combination_held_out, is_held_out

OBJECTS = ANIMALS + THINGS


def test_a_swap_exchanges_the_object_and_its_article_and_stays_held_out():
    seen = 0
    for i, scene in enumerate(tiny_cases.held_out_scenes(300, 1)):
        swap = tiny_cases.swap_target(scene, i)
        if swap is None:
            continue
        target, old, new = swap
        seen += 1
        (thing,) = scene.things
        assert old == thing.name != new and (old in ANIMALS) == (new in ANIMALS)
        assert is_held_out(scene) and combination_held_out(new, thing.colour, scene.background)
        before, after = scene.caption.split(), target.split()
        changed = {pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]}
        assert {word.strip(",") for pair in changed for word in pair} - {"a", "an"} == {old, new}
        assert f"a {new}" not in target or new[0] not in "aeiou"
    assert 150 < seen < 300
    assert len(list(tiny_cases.swap_cases(7))) == 7


class MadeUp:
    """A judge that says of the n-th picture of a batch that its n-th word is there, in the upper half and, below it, in
    the n-th column; that it is purple and a sketch."""

    config = JudgeConfig()

    def __init__(self, words):
        self.words, self.seen = words, []

    def __call__(self, pictures):
        self.visible_words.append(pictures)
        n, (rows, columns) = len(pictures), pictures.shape[-2:]
        objects = torch.stack([torch.tensor([float(name == word) for name in OBJECTS]) for word in self.words[:n]])
        thing = torch.zeros(n, rows, columns)
        thing[:, : rows // 2] = 1
        thing[range(n), :, range(n)] = 1
        kinds = objects[:, :, None, None].expand(-1, -1, rows // 4, columns // 4)
        paints, style = torch.zeros(n, 30, 7), torch.zeros(n, 3)
        paints[..., self.config.colours.index("purple")] = 1
        style[:, self.config.styles.index("sketch")] = 1
        rest = [paints, torch.zeros(n, 8), style, torch.zeros(n, 3)]
        return Verdict(self.config, objects, thing, kinds, *rest)


class Said:
    """A judge with one verdict."""

    config = JudgeConfig()

    def __init__(self, verdict):
        self.verdict = verdict

    def __call__(self, pictures):
        return self.verdict


def test_swaps_are_counted_for_the_right_picture(model):
    ((scene, (target, old, new)),) = tiny_cases.swap_cases(1)
    judge = MadeUp([old, old, new, new, old])  # source, without P2P, with it, at the card's τ, with blending
    table, images = tiny_cases.measure_swap(model, judge, 0, (scene, (target, old, new)), 2)
    views = source, alone, usual, swap, blend = judge.visible_words[-1]
    assert [image.tobytes() for image in images] == [to_pil(view).tobytes() for view in views]
    assert table["object"] == 1 and (table["background"] == 1) == (scene.background == judge.config.backgrounds[0])
    assert [table[f"{name}_success"] for name in ("alone", "usual", "swap", "blend")] == [0, 1, 1, 0]
    lower = torch.zeros(source.shape[1:], dtype=torch.bool)
    lower[len(lower) // 2 :, 5:] = True  # where none of the five has an object
    for name, view in (("alone", alone), ("usual", usual), ("swap", swap), ("blend", blend)):
        assert table[f"psnr_{name}"] == pytest.approx(tiny_report.psnr(source, view, lower))
    assert not alone.equal(swap) and not usual.equal(swap)
    assert table["psnr_swap_right"] == table["psnr_swap"] and "psnr_blend_right" not in table
    heat = sample(model, model.prepare(scene.caption, seed=0, steps=2)).heatmaps([old], (1, 2)).mean[0]
    upper = torch.zeros(source.shape[1:], dtype=torch.bool)
    upper[: len(upper) // 2] = True
    upper[:, 0] = True
    for name, pool in (("mask_iou_generated", True), ("mask_iou_generated_unpooled", False)):
        assert table[name] == pytest.approx(iou(heatmap_to_mask(heat, tuple(upper.shape), 0.3, pool), upper), abs=1e-3)


def test_what_is_right_in_a_picture():
    scene = next(tiny_cases.held_out_scenes(1, 1))
    thing = replace(scene.things[0], name="car", colour="purple")
    purple = replace(scene, things=(thing,), style="photo")
    blank = torch.zeros(3, 32, 32)
    found = tiny_cases.check_scene(MadeUp(["car"]), purple, blank)
    assert found["object"] == found["object_strict"] == found["colour"] == 1 and found["style"] == 0
    red = replace(purple, things=(replace(thing, colour="red"),))
    assert tiny_cases.check_scene(MadeUp(["car"]), red, blank)["colour"] == 0
    sketch = tiny_cases.check_scene(MadeUp(["car"]), replace(red, style="sketch"), blank)
    assert "colour" not in sketch and sketch["style"] == 1
    assert tiny_cases.check_scene(MadeUp(["cat"]), purple, blank)["object"] == 0


def test_an_object_too_many_is_not_strictly_right():
    """The likeliest is the right one; but there is another that is likelier there than not."""
    scene = next(tiny_cases.held_out_scenes(1, 1))
    scene = replace(scene, things=(replace(scene.things[0], name="car", colour=None),))
    verdict = MadeUp(["car"])(torch.zeros(1, 3, 32, 32))
    verdict.objects[0, OBJECTS.index("cat")] = 0.6
    found = tiny_cases.check_scene(Said(verdict), scene, torch.zeros(3, 32, 32))
    assert (found["object"], found["object_strict"]) == (1, 0)
    verdict.objects[0, OBJECTS.index("cat")] = 0.4
    assert tiny_cases.check_scene(Said(verdict), scene, torch.zeros(3, 32, 32))["object_strict"] == 1


def test_the_four_targets_of_a_swap(model):
    targets = tiny_cases.swap_targets(model, "a cat", "a dog", ("cat", "dog"), torch.zeros(1, 4, 16, 16), 10)
    old, new = model.text.prompt("a cat"), model.text.prompt("a dog")
    taus = (0.0, 0.0), (0.8, 0.4), tiny_cases.TAUS, tiny_cases.TAUS
    for target, (cross, self_) in zip(targets, taus, strict=True):
        plan = plan_edit(old, new, 10, cross_replace=cross, self_replace=self_)
        assert [target.edit.at(i).key for i in range(10)] == [plan.at(i).key for i in range(10)]
    blend = targets[3].blending.blend
    assert [t.blending for t in targets[:3]] == [None] * 3 and not blend.pool


def test_maps_are_read_in_the_middle_of_the_schedule(model, monkeypatch):
    """The render is noised as far as t says; masks are made at the published threshold, with the pool and without."""
    seen = []
    noised = lambda x, t, context, attend: seen.append((t, x)) or model.unet(x, t, context, attend)  # noqa: E731
    part = SimpleNamespace(vae=model.vae, text=model.text, sched=model.scheduler, unet=noised)
    masks = []
    monkeypatch.setattr(tiny_report, "mask_of", lambda *given: masks.append(given[2:]) or heatmap_to_mask(*given))
    scene = next(tiny_cases.held_out_scenes(1, 1))
    monkeypatch.setattr(tiny_report, "dataset", lambda *_, **__: iter([scene]))
    drawn = SimpleNamespace(masks={scene.things[0].name: np.ones((128, 128), bool)})
    monkeypatch.setattr(tiny_report, "render", lambda *_: drawn)
    monkeypatch.setattr(tiny_report, "pictures", lambda *_: torch.zeros(1, 3, 128, 128))
    tiny_report.map_iou(part, None, 1)
    ((t, x),) = seen
    assert t == 500 and sorted(masks) == [(0.3, False), (0.3, True)]
    x0 = model.vae.scale(model.vae.encode(torch.zeros(1, 3, 128, 128))[0])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    abar = model.scheduler.alphas_cumprod[t]
    torch.testing.assert_close(x, abar.sqrt() * x0 + (1 - abar).sqrt() * noise)


def test_gains_are_over_the_same_seed_alone(monkeypatch, tmp_path):
    figures = {"psnr_alone": 20.0, "psnr_swap": 23.0, "psnr_blend": 31.0}

    class Crew:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def measured(self, measure, cases):
            return [(figures, [Image.new("RGB", (8, 8))])]

    monkeypatch.setattr(tiny_report, "Crew", Crew)
    monkeypatch.setattr(tiny_report, "examine", lambda *_, **__: {})
    monkeypatch.setattr(tiny_report, "judge_metrics", lambda *_: {"judge_object": 0.5})
    table = tiny_report.run_cases(None, None, None, 1, 1, tmp_path)
    assert (table["swap_gain_db"], table["swap_blend_gain_db"]) == (3, 11)
    assert table["judge_object_decoded"] == 0.5 and table["different_swaps"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"swaps.png", "pairs.png", "graded.png"}


def failing(model, judge, number, case, steps):
    """A case that fails if its number is 0, and else says that it was begun."""
    if number == 0:
        raise ValueError("the first case fails")
    (case / str(number)).touch()
    time.sleep(0.2)
    return {}, []


def test_a_crew_stops_at_an_error(tmp_path):
    with pytest.raises(ValueError, match="first case"), workers.WorkerPool(None, 1) as crew:
        crew.measured(failing, [tmp_path] * 60)
    assert len(list(tmp_path.iterdir())) < 40


@pytest.mark.parametrize(
    "strengths, monotone",
    [
        ((0.1, 0.2, 0.4), 1),
        ((0.1, 0.1, 0.4), 0),
        ((0.1, 0.5, 0.4), 0),
        ((0.1, 0.11, 0.12), 0),
        ((0.0, 0.0, 0.0), 0),
    ],
)
def test_a_strength_that_does_not_rise_is_not_monotone(model, strengths, monotone):
    strength = torch.tensor(strengths)[:, None].expand(-1, 3)
    judge = SimpleNamespace(config=JudgeConfig(), network=lambda pictures: SimpleNamespace(strength=strength))
    (case,) = tiny_cases.graded_cases(1)
    table, images = tiny_cases.measure_reweighting(model, judge, 0, case, 1)
    assert len(images) == 3
    assert table["reweight_monotone"] == monotone
    assert table["reweight_rise"] == pytest.approx(strengths[-1] - strengths[0])


def test_cases_shared_out_among_processes_are_measured_once_each_and_in_order(model):
    """Seven cases are more than one share; the numbers (their seeds) are their places in the list."""
    scenes = list(tiny_cases.held_out_scenes(7, 2))
    with workers.WorkerPool(None, 1) as crew:
        found = crew.measured(tiny_cases.measure_two_objects, scenes)
    assert len(found) == 7
    judge = Judge.load()
    for number in (0, 6):
        figures, (image,) = tiny_cases.measure_two_objects(model, judge, number, scenes[number], 1)
        assert found[number][0] == figures
        difference = np.asarray(found[number][1][0], int) - np.asarray(image, int)
        assert abs(difference).max() <= 1  # of 255: one thread there, several here


def test_a_mean_is_over_the_cases_that_have_the_figure():
    assert tiny_report.case_means([({"a": 1.0, "b": 0.0}, []), ({"a": 2.0}, [])]) == {"a": 1.5, "b": 0.0}


def test_the_card_gets_the_table_in_its_own_order(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n", encoding="utf-8")
    tiny_report.write_card(card, tiny_report.card_table({"style": 0.5, "vae_psnr": 26.5, "object": 0.25}, 40, 50, 4.0))
    said = card.read_text(encoding="utf-8")
    assert said.startswith("before\n<!-- table -->\n40 cases") and said.endswith("<!-- end of table -->\nafter\n")
    assert "old" not in said and said.index("| vae_psnr | 26.500 | 26 |") < said.index("| object | 0.250 | 0.90 |")
    assert said.index("| object") < said.index("| style | 0.500 | 0.95 |")


def test_no_cases_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "--cases", "0"])
    assert tiny_report.main() == 2
    assert "--cases must be at least 1" in capsys.readouterr().err
