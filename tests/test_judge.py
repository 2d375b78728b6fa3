"""The judge: its network, its loading and its training, on sprites made here."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minip2p.tiny import judge_train, scenes
from minip2p.tiny.judge import Judge, JudgeConfig, Network
from minip2p.tiny.judge_train import IGNORE_LABEL, corrupt_picture, judge_loss, make_lesson, rank_correlation
from minip2p.tiny.scenes import ANIMALS, THINGS, dataset, render

SMALL = JudgeConfig(widths=(12, 12, 24, 24))


@pytest.fixture(scope="module")
def sprites():
    """A disc for every word: enough to have scenes with masks."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    disc = np.stack([np.full_like(x, c) for c in (220, 40, 120)] + [255.0 * (x**2 + y**2 < 0.9)], -1).astype(np.uint8)
    return scenes.Sprites({name: disc for name in ANIMALS + THINGS})


def fresh(config=SMALL, seed=0) -> Judge:
    torch.manual_seed(seed)
    return Judge(Network(config), config)


def test_a_verdict_has_the_shapes_it_documents():
    verdict = fresh()(torch.rand(2, 3, 64, 128) * 2 - 1)
    shapes = {
        name: tuple(getattr(verdict, name).shape)
        for name in ("objects", "thing", "kinds", "paints", "background", "style", "strength")
    }
    assert shapes == {
        "objects": (2, 30),
        "thing": (2, 64, 128),
        "kinds": (2, 30, 16, 32),
        "paints": (2, 30, 7),
        "background": (2, 8),
        "style": (2, 3),
        "strength": (2, 3),
    }
    assert verdict.masks("cat").shape == (2, 64, 128) and verdict.colour("car").shape == (2, 7)
    for probabilities in (verdict.kinds, verdict.paints.mT, verdict.background, verdict.style):
        torch.testing.assert_close(probabilities.sum(1), torch.ones_like(probabilities.sum(1)))
    assert all(len(names) == 2 for names in verdict.present(2))


def test_a_mask_is_where_a_thing_is_and_which():
    verdict = fresh()(torch.rand(1, 3, 32, 32))
    assert torch.equal(verdict.colour("lamp"), verdict.paints[:, 29])
    assert sum(verdict.masks(name) for name in ANIMALS + THINGS) == pytest.approx(verdict.thing, abs=1e-5)
    sure = replace(verdict, kinds=torch.zeros(1, 30, 8, 8).index_fill(1, torch.tensor(3), 1.0))
    assert torch.equal(sure.masks("horse"), verdict.thing) and sure.masks("cat").sum() == 0


def test_an_unknown_word_or_shape_is_named():
    judge = fresh()
    with pytest.raises(ValueError, match="'dragon'"):
        judge(torch.zeros(1, 3, 32, 32)).masks("dragon")
    for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 40)):
        with pytest.raises(ValueError, match="b 3 H W"):
            judge(torch.zeros(shape))


def test_colour_is_read_inside_the_mask_alone():
    network, features, cover = fresh().network, torch.rand(1, 15, 8, 8), torch.zeros(1, 30, 8, 8)
    cover[:, 0, 2:4, 2:4] = 1
    changed = features + torch.rand(1, 15, 8, 8) * (1 - cover[:, :1])
    torch.testing.assert_close(network.colours(changed, cover)[:, 0], network.colours(features, cover)[:, 0])
    torch.testing.assert_close(network.colours(features, 0.1 * cover), network.colours(features, cover))


def test_the_densest_cells_count_as_well_as_the_area():
    network, cover = fresh().network, torch.zeros(1, 30, 8, 8)
    with torch.no_grad():
        network.presence.weight.copy_(torch.tensor([[0.0, 1.0]]))
    cover[:, 0, 2:5, 2:5], cover[:, 1] = 1, 0.2  # a small sure object, a large doubtful one
    first, second = network.objects(cover)[0, :2]
    assert cover[:, 0].sum() < cover[:, 1].sum() and first > second


def test_a_saved_judge_loads_as_it_was(tmp_path):
    judge = fresh()
    judge.save(tmp_path)
    again, x = Judge.load(tmp_path), torch.rand(1, 3, 32, 32)
    assert again.config == SMALL
    torch.testing.assert_close(again(x).kinds, judge(x).kinds, atol=2e-3, rtol=0)  # float16


@pytest.mark.parametrize("change, named", [("missing", "stem.bias"), ("unknown", "extra"), ("shape", "stem.bias")])
def test_loading_weights_is_strict(tmp_path, change, named):
    fresh().save(tmp_path)
    tensors = load_file(tmp_path / "judge.safetensors")
    if change == "unknown":
        tensors["extra"] = torch.zeros(1)
    else:
        bias = tensors.pop("stem.bias")
        tensors |= {"stem.bias": bias[1:].clone()} if change == "shape" else {}
    save_file(tensors, tmp_path / "judge.safetensors")
    with pytest.raises(ValueError, match=named) as error:
        Judge.load(tmp_path)
    assert "\n" not in str(error.value)


def test_loading_a_config_is_strict(tmp_path):
    with pytest.raises(ValueError, match="train the judge"):
        Judge.load(tmp_path)
    fresh().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for values in (config | {"depth": [1]}, {"widths": config["widths"]}):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"missing or unknown: (depth|attributes)"):
            Judge.load(tmp_path)


def test_a_lesson_tells_the_truth_of_its_scenes(sprites):
    drawn = list(dataset(0, 12))
    sheet = make_lesson(drawn, sprites, JudgeConfig())
    assert sheet.pictures.shape == (12, 3, 128, 128) and sheet.pictures.abs().max() <= 1
    for i, scene in enumerate(drawn):
        assert sheet.present[i].sum() == len(scene.things) and sheet.strength[i].sum() == pytest.approx(scene.strength)
        for thing in scene.things:
            word = JudgeConfig().objects.index(thing.name)
            np.testing.assert_array_equal(sheet.labels[i] == 1 + word, render(scene, sprites).masks[thing.name])
            told = thing.colour is not None and scene.style != "sketch"
            assert (sheet.paint[i, word] != IGNORE_LABEL) == told


def test_spoiling_is_mild_and_repeats():
    picture = np.tile(np.linspace(60, 200, 128)[:, None, None], (1, 128, 3)).astype(np.uint8)
    kept = 0
    for seed in range(24):
        first, second = (corrupt_picture(picture, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.shape == picture.shape and np.abs(first.astype(float) - picture).mean() < 30
        kept += np.array_equal(first, picture)
    assert 0 < kept < 24


def test_every_weight_learns(sprites):
    judge = fresh(seed=1)
    scenes_ = list(dataset(1, 4, style="photo"))
    judge_loss(judge.network, make_lesson(scenes_, sprites, SMALL, spoil_seed=0)).backward()
    for name, parameter in judge.network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_a_lesson_of_sketches_has_no_colour_to_learn(sprites):
    sheet = make_lesson(list(dataset(2, 2, style="sketch")), sprites, SMALL)
    judge = fresh()
    assert (sheet.paint == IGNORE_LABEL).all()
    judge_loss(judge.network, sheet).backward()
    assert judge.network.paint[0].weight.grad.abs().sum() == 0


def test_rank_correlation_is_spearmans():
    a = torch.tensor([0.1, 0.4, 0.4, 0.9])
    assert judge_train.ranks(a).tolist() == [1, 2.5, 2.5, 4]
    assert rank_correlation(a, a**3) == pytest.approx(1) and rank_correlation(a, -a) == pytest.approx(-1)
    b = torch.tensor([1.0, 2, 3, 4, 5])
    assert rank_correlation(b, torch.tensor([2.0, 1, 4, 3, 5])) == pytest.approx(1 - 6 * 4 / (5 * 24))


def test_the_examination_counts_what_it_says(sprites):
    """A verdict made of the truth is right in everything; with the objects moved by one, no scene is."""
    sheet = make_lesson(list(dataset(3, 10)), sprites, JudgeConfig())
    one_hot = torch.nn.functional.one_hot
    covers = one_hot(sheet.labels, 31).movedim(3, 1)[:, 1:].float()
    kinds = torch.nn.functional.max_pool2d(covers, 9, 4, 4)  # so wide that no pixel of the object misses it
    verdict = replace(
        fresh(JudgeConfig())(sheet.pictures),
        objects=sheet.present,
        thing=covers.sum(1),
        kinds=kinds / kinds.sum(1, keepdim=True).clamp_min(1),
        paints=one_hot(sheet.paint.clamp_min(0), 7).float(),
        background=one_hot(sheet.background, 8).float(),
        style=one_hot(sheet.style, 3).float(),
    )
    found = judge_train.answers(verdict, sheet)
    assert all(min(values) == 1 for name, values in found.items() if name != "iou") and np.mean(found["iou"]) > 0.95
    assert len(found["iou"]) == sheet.present.sum() and len(found["colour"]) == (sheet.paint != IGNORE_LABEL).sum()
    moved = judge_train.answers(replace(verdict, objects=sheet.present.roll(1, 1)), sheet)
    assert sum(moved["object"]) == 0 and moved["iou"] == found["iou"]


def test_a_mask_of_the_examination_is_where_a_thing_is_likelier_than_not(sprites):
    """A verdict that is .4 sure of all other pixels keeps its IoU; with .6 it does not."""
    sheet = make_lesson(list(dataset(3, 4, objects=1)), sprites, JudgeConfig())
    covers = torch.nn.functional.one_hot(sheet.labels, 31).movedim(3, 1)[:, 1:].float()
    ones = sheet.present[:, :, None, None].expand(-1, -1, 32, 32)
    read = fresh(JudgeConfig())(sheet.pictures)

    def ious(elsewhere):
        verdict = replace(read, thing=covers.sum(1).clamp_min(elsewhere), kinds=ones, objects=sheet.present)
        return judge_train.answers(verdict, sheet)["iou"]

    assert min(ious(0.4)) == 1 and max(ious(0.6)) < 0.9


def test_strengths_are_ranked_among_the_scenes_that_bear_the_attribute(sprites, monkeypatch):
    """A judge that sees each strength as it is, and 2 where there is none, ranks those that are there rightly."""
    config = JudgeConfig()

    def verdict(pictures):
        truth = make_lesson(scenes_, sprites, config).strength
        return replace(fresh(config)(pictures), strength=torch.where(truth > 0, truth, 2.0))

    scenes_ = list(dataset(judge_train.EXAM_SEED, 40, held_out=True))
    judge = lambda pictures: verdict(pictures)  # noqa: E731
    judge.config = config
    table = judge_train.examine(judge, sprites, count=40)
    for name in config.attributes:
        count = sum(scene.attribute == name for scene in scenes_)
        assert table[f"strength_{name}"] == (pytest.approx(1), count) and table[f"absent_{name}"] == (2, 40 - count)


def test_a_strength_lies_in_0_to_1_and_a_colour_is_read_where_the_thing_is():
    judge, x = fresh(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        judge.network.whole[2].bias[-3:] = torch.tensor([9.0, -9.0, 0.5])
        strength = judge(x).strength[0]
        assert strength[:2].tolist() == [1, 0]
        judge.network.thing.bias.fill_(-99.0)  # nothing anywhere: all colours are read from nothing, so alike
        paints = judge(x).paints[0]
    assert torch.allclose(paints, paints[:1].expand_as(paints), atol=1e-6)
