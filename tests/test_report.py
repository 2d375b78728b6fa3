"""The report: its figures by hand, its cases, and its bookkeeping with a judge whose verdicts are made up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minip2p.tiny import cases, report
from minip2p.tiny.judge import Judge, JudgeConfig, Verdict
from minip2p.tiny.scenes import ANIMALS, THINGS, combination_held_out, is_held_out
from minip2p.trajectory import as_image

OBJECTS = ANIMALS + THINGS


def test_means_are_of_what_there_is():
    assert report.mean([1.0, float("nan"), 3.0]) == 2 and math.isnan(report.mean([float("nan")]))


def test_a_swap_exchanges_the_object_and_its_article_and_stays_held_out():
    seen = 0
    for i, scene in enumerate(cases.prompts(300, 1)):
        swap = cases.swapped(scene, i)
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
    assert len(list(cases.swap_cases(7))) == 7


class MadeUp:
    """A judge that says of the n-th picture of a batch that its n-th word is there, in the upper half."""

    config = JudgeConfig()

    def __init__(self, words):
        self.words, self.seen = words, []

    def __call__(self, pictures):
        self.seen.append(pictures)
        n, (rows, columns) = len(pictures), pictures.shape[-2:]
        objects = torch.stack([torch.tensor([float(name == word) for name in OBJECTS]) for word in self.words[:n]])
        thing = torch.zeros(n, rows, columns)
        thing[:, : rows // 2] = 1
        kinds = objects[:, :, None, None].expand(-1, -1, rows // 4, columns // 4)
        rest = [torch.zeros(n, 30, 7), torch.zeros(n, 8), torch.zeros(n, 3), torch.zeros(n, 3)]
        return Verdict(self.config, objects, thing, kinds, *rest)


def test_swaps_are_counted_for_the_right_picture(model):
    ((scene, (target, old, new)),) = cases.swap_cases(1)
    judge = MadeUp([old, old, new, new, old])  # source, without P2P, with it, at the card's τ, with blending
    table, images = cases.swap(model, judge, 0, (scene, (target, old, new)), 2)
    views = source, alone, usual, swap, blend = judge.seen[-1]
    assert [image.tobytes() for image in images] == [as_image(view).tobytes() for view in views]
    assert table["object"] == 1 and (table["background"] == 1) == (scene.background == judge.config.backgrounds[0])
    assert [table[f"{name}_success"] for name in ("alone", "usual", "swap", "blend")] == [0, 1, 1, 0]
    lower = torch.zeros(source.shape[1:], dtype=torch.bool)
    lower[len(lower) // 2 :] = True
    for name, view in (("alone", alone), ("usual", usual), ("swap", swap), ("blend", blend)):
        assert table[f"psnr_{name}"] == pytest.approx(report.psnr(source, view, lower))
    assert not alone.equal(swap) and not usual.equal(swap)
    assert 0 <= table["mask_iou_generated"] <= 1


@pytest.mark.parametrize("strengths, monotone", [
    ((0.1, 0.2, 0.4), 1), ((0.1, 0.1, 0.4), 0), ((0.1, 0.5, 0.4), 0), ((0.1, 0.11, 0.12), 0), ((0.0, 0.0, 0.0), 0),
])  # fmt: skip
def test_a_strength_that_does_not_rise_is_not_monotone(model, strengths, monotone):
    strength = torch.tensor(strengths)[:, None].expand(-1, 3)
    judge = SimpleNamespace(config=JudgeConfig(), network=lambda pictures: SimpleNamespace(strength=strength))
    (case,) = cases.graded_cases(1)
    table, images = cases.reweighting(model, judge, 0, case, 1)
    assert len(images) == 3
    assert table["reweight_monotone"] == monotone
    assert table["reweight_rise"] == pytest.approx(strengths[-1] - strengths[0])


def test_cases_shared_out_among_processes_are_measured_once_each_and_in_order(model):
    """Seven cases are more than one share; the numbers (their seeds) are their places in the list."""
    scenes = list(cases.prompts(7, 2))
    with cases.Crew(None, 1) as crew:
        found = crew.measured(cases.two_objects, scenes)
    assert len(found) == 7
    judge = Judge.load()
    for number in (0, 6):
        figures, (image,) = cases.two_objects(model, judge, number, scenes[number], 1)
        assert found[number][0] == figures
        difference = np.asarray(found[number][1][0], int) - np.asarray(image, int)
        assert abs(difference).max() <= 1  # of 255: one thread there, several here


def test_a_mean_is_over_the_cases_that_have_the_figure():
    assert report.means([({"a": 1.0, "b": 0.0}, []), ({"a": 2.0}, [])]) == {"a": 1.5, "b": 0.0}


def test_the_card_gets_the_table_in_its_own_order(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n", encoding="utf-8")
    report.write_card(card, report.said({"style": 0.5, "vae_psnr": 26.5, "object": 0.25}, 40, 50, 4.0))
    said = card.read_text(encoding="utf-8")
    assert said.startswith("before\n<!-- table -->\n40 cases") and said.endswith("<!-- end of table -->\nafter\n")
    assert "old" not in said and said.index("| vae_psnr | 26.500 | 26 |") < said.index("| object | 0.250 | 0.90 |")
    assert said.index("| object") < said.index("| style | 0.500 | 0.95 |")


def test_no_cases_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "--cases", "0"])
    assert report.main() == 2
    assert "--cases must be at least 1" in capsys.readouterr().err
