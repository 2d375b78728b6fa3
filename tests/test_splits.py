"""Nothing is examined on what was trained on: which scenes every exam and every training draws."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minip2p.evaluation import tiny_cases, tiny_report
from minip2p.tiny import judge_train, scenes, train
from minip2p.tiny.judge import Judge, JudgeConfig
from minip2p.tiny.scenes import ANIMALS, THINGS


@pytest.fixture(scope="module")
def sprites():
    disc = np.full((16, 16, 4), 200, np.uint8)
    return scenes.Sprites({name: disc for name in ANIMALS + THINGS})


@pytest.fixture
def drawn(monkeypatch):
    """What is asked of `dataset` while a test runs: (seed, held out, what is fixed) of each call."""
    asked = []

    def dataset(seed, n, *, start=0, held_out=False, **fixed):
        asked.append((seed, held_out, fixed))
        return scenes.dataset(seed, n, start=start, held_out=held_out, **fixed)

    for module in (tiny_cases, judge_train, tiny_report, train):
        if hasattr(module, "dataset"):
            monkeypatch.setattr(module, "dataset", dataset)
    return asked


def test_exams_are_held_out(drawn, model, sprites):
    named = {"name_place": True, "name_colour": True}
    tiny_report.vae_psnr(model, sprites, 1)
    tiny_report.map_iou(model, sprites, 1)
    judge_train.examine(Judge.load(), sprites, count=40)
    list(tiny_cases.swap_cases(1))
    list(tiny_cases.held_out_scenes(1, 2))
    tiny_cases.graded_cases(3)
    fixed = {"objects": 1, "style": "photo", "strength": 0.5, "name_place": True}
    graded = [
        fixed | {"background": place, "attribute": word}
        for word, place in (("fog", "street"), ("flowers", "beach"), ("snow", "street"))
    ]
    assert drawn == [
        (9001, True, {}),
        (9001, True, {}),
        (7001, True, {}),
        (9002, True, named | {"objects": 1}),
        (9003, True, named | {"objects": 2}),
        *((9004, True, what) for what in graded),
    ]


def test_trainings_are_of_the_other_split_and_of_other_seeds(drawn, sprites, tmp_path, monkeypatch):
    class OneStep:
        """A training that only asks for the loss of a step."""

        def __init__(self, *_, steps, **__):
            self.step = steps

        def run(self, loss, **_):
            loss(5)

        def averaged(self):
            pass

    monkeypatch.setattr(judge_train, "Training", OneStep)
    judge_train.train(tmp_path, 3, sprites, 0.0)
    train.vae_batch(3, 0, sprites)
    train.vae_batch(3, train.VAE_CROPPED, sprites)
    train.draw_captions(3, 0, torch.tensor([1]))
    monkeypatch.setattr(train, "CHUNK", 32)
    vae = SimpleNamespace(encode=lambda x: (torch.zeros(len(x), 4, 16, 16), None))
    train.Latents(tmp_path, vae, 3, sprites).chunk(0)
    assert drawn == [(3, False, {})] * 5


def test_no_scene_shows_what_its_place_already_shows():
    """Fog may be anywhere; flowers in a meadow or snow in the snow could not be told from the place."""
    seen = [(scene.background, scene.attribute) for scene in scenes.dataset(11, 800)]
    assert ("meadow", "flowers") not in seen and ("snow", "snow") not in seen
    assert {attribute for _, attribute in seen} == {None, *JudgeConfig().attributes}
