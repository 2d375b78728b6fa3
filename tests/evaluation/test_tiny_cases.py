"""The cases of the report on the model that ships, and their figures, with judges whose verdicts are made up."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minip2p.attention.contract import SiteFilter
from minip2p.attention.masks import heatmap_to_mask
from minip2p.evaluation import tiny_cases
from minip2p.evaluation.tiny_cases import check_scene, held_out_scenes, measure_reweighting, measure_swap, swap_targets
from minip2p.io.images import to_pil
from minip2p.metrics.image import iou, psnr
from minip2p.p2p.edit_plan import plan_edit
from minip2p.p2p.options import EditOptions
from minip2p.sampling.settings import RunSettings
from minip2p.tiny.judge import Verdict
from minip2p.tiny.judge_network import JudgeConfig
from minip2p.tiny.scenes import ANIMALS, OBJECTS, combination_held_out, is_held_out


class InventedJudge:
    """A judge that finds the n-th of its words in the n-th picture of a batch: in the upper half, and below it in the
    n-th column. Every object is purple, every picture a sketch in the first place."""

    config = JudgeConfig()

    def __init__(self, words):
        self.words, self.batches = words, []

    def __call__(self, pictures):
        self.batches.append(pictures)
        n, (rows, columns) = len(pictures), pictures.shape[-2:]
        objects = torch.stack([torch.tensor([float(name == word) for name in OBJECTS]) for word in self.words[:n]])
        foreground = torch.zeros(n, rows, columns)
        foreground[:, : rows // 2] = 1
        foreground[range(n), :, range(n)] = 1
        colours, style = torch.zeros(n, 30, 7), torch.zeros(n, 3)
        colours[..., self.config.colours.index("purple")] = 1
        style[:, self.config.styles.index("sketch")] = 1
        return Verdict(
            self.config,
            objects=objects,
            foreground=foreground,
            classes=objects[:, :, None, None].expand(-1, -1, rows // 4, columns // 4),
            colours=colours,
            background=torch.zeros(n, 8),
            style=style,
            strength=torch.zeros(n, 3),
        )


def test_a_swap_exchanges_the_object_and_its_article_and_stays_held_out():
    swaps = 0
    for i, scene in enumerate(held_out_scenes(300, 1)):
        swap = tiny_cases.swap_target(scene, i)
        if swap is None:
            continue
        target, old, new = swap
        swaps += 1
        (thing,) = scene.things
        assert old == thing.name != new and (old in ANIMALS) == (new in ANIMALS)
        assert is_held_out(scene) and combination_held_out(new, thing.colour, scene.background)
        before, after = scene.caption.split(), target.split()
        changed = {pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]}
        assert {word.strip(",") for pair in changed for word in pair} - {"a", "an"} == {old, new}
        assert f"a {new}" not in target or new[0] not in "aeiou"
    assert 150 < swaps < 300
    assert len(list(tiny_cases.swap_cases(7))) == 7


def test_a_swap_is_counted_for_the_right_picture(cpu_model):
    ((scene, swap),) = tiny_cases.swap_cases(1)
    _, old, new = swap
    judge = InventedJudge([old, old, new, new, old])  # source, without P2P, at the paper's τ, at the card's, blended
    figures, images = measure_swap(cpu_model, judge, 0, (scene, swap), 2)
    source, without_p2p, usual, swapped, blended = pictures = judge.batches[-1]
    assert [image.tobytes() for image in images] == [to_pil(picture).tobytes() for picture in pictures]
    assert figures["object"] == 1
    assert (figures["background"] == 1) == (scene.background == judge.config.backgrounds[0])
    assert [figures[f"{name}_success"] for name in ("alone", "usual", "swap", "blend")] == [0, 1, 1, 0]
    background = torch.zeros(source.shape[1:], dtype=torch.bool)
    background[len(background) // 2 :, 5:] = True  # where no object is in any of the five
    for name, picture in (("alone", without_p2p), ("usual", usual), ("swap", swapped), ("blend", blended)):
        assert figures[f"psnr_{name}"] == pytest.approx(psnr(source, picture, background))
    assert not without_p2p.equal(swapped) and not usual.equal(swapped)
    assert figures["psnr_swap_right"] == figures["psnr_swap"] and "psnr_blend_right" not in figures
    heat = cpu_model.generate(scene.caption, seed=0, steps=2).heatmaps([old], sites=SiteFilter(strides=(1, 2))).mean[0]
    true = torch.zeros(source.shape[1:], dtype=torch.bool)
    true[: len(true) // 2] = True
    true[:, 0] = True
    for name, pool in (("mask_iou_generated", True), ("mask_iou_generated_unpooled", False)):
        mask = heatmap_to_mask(heat, tuple(true.shape), 0.3, pool)
        assert figures[name] == pytest.approx(iou(mask, true), abs=1e-3)


def test_a_scene_is_checked_by_its_object_colour_and_style():
    scene = next(held_out_scenes(1, 1))
    thing = replace(scene.things[0], name="car", colour="purple")
    purple = replace(scene, things=(thing,), style="photo")
    red = replace(purple, things=(replace(thing, colour="red"),))
    blank = torch.zeros(3, 32, 32)
    results = check_scene(InventedJudge(["car"]), purple, blank)
    assert results["object"] == results["object_strict"] == results["colour"] == 1 and results["style"] == 0
    assert check_scene(InventedJudge(["car"]), red, blank)["colour"] == 0
    sketch = check_scene(InventedJudge(["car"]), replace(red, style="sketch"), blank)
    assert "colour" not in sketch and sketch["style"] == 1
    assert check_scene(InventedJudge(["cat"]), purple, blank)["object"] == 0


@pytest.mark.parametrize("probability, strict", [(0.6, 0), (0.4, 1)])
def test_a_second_object_that_is_likelier_present_than_absent_is_not_strictly_right(probability, strict):
    """The likeliest object is the right one in both cases."""
    scene = next(held_out_scenes(1, 1))
    scene = replace(scene, things=(replace(scene.things[0], name="car", colour=None),))
    verdict = InventedJudge(["car"])(torch.zeros(1, 3, 32, 32))
    verdict.objects[0, OBJECTS.index("cat")] = probability

    class OneVerdict:
        config = JudgeConfig()

        def __call__(self, pictures):
            return verdict

    results = check_scene(OneVerdict(), scene, torch.zeros(3, 32, 32))
    assert (results["object"], results["object_strict"]) == (1, strict)


def test_the_four_targets_of_a_swap(model):
    start = model.prepare("a cat", RunSettings(steps=10))
    targets = swap_targets(model, start, ("a dog", "cat", "dog"))
    source, edited = model.text.prompt("a cat"), model.text.prompt("a dog")
    taus = (0.0, 0.0), (0.8, 0.4), (0.8, 0.8), (0.8, 0.8)
    for target, (cross, self_) in zip(targets, taus, strict=True):
        plan = plan_edit(source, edited, 10, EditOptions(cross_replace=cross, self_replace=self_))
        assert [target.plan.at(i).cache_key for i in range(10)] == [plan.at(i).cache_key for i in range(10)]
    blend = targets[3].blend_state.blend
    assert [target.blend_state for target in targets[:3]] == [None] * 3
    assert (blend.source, blend.target, blend.pool) == (("cat",), ("dog",), False)


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
def test_a_strength_must_rise_with_each_weight_and_by_the_margin_in_all(model, strengths, monotone):
    strength = torch.tensor(strengths)[:, None].expand(-1, 3)
    judge = SimpleNamespace(config=JudgeConfig(), network=lambda pictures: SimpleNamespace(strength=strength))
    (case,) = tiny_cases.graded_cases(1)
    figures, images = measure_reweighting(model, judge, 0, case, 1)
    assert len(images) == 3
    assert figures["reweight_monotone"] == monotone
    assert figures["reweight_rise"] == pytest.approx(strengths[-1] - strengths[0])
