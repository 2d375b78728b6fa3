"""The judge that ships, on renders and on a generated picture: what a sweep and the benchmark of edits ask of it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p.evaluation.make_cases import KINDS, scene_pair
from minip2p.evaluation.pie_bench import read_cases
from minip2p.tiny.judge import Judge, pad_picture

CASES = read_cases()


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def read_picture(case):
    """A case's picture, 3 H W in [-1, 1]."""
    return torch.from_numpy(np.asarray(Image.open(case.picture)).copy()).permute(2, 0, 1) / 127.5 - 1


def test_it_scores_whether_the_objects_of_the_target_are_there_and_where_the_others_were(judge, cpu_model):
    """Of a generated picture: its own objects are there and others are not; its mask has IoU 1 with itself."""
    picture = cpu_model.generate("a tiger on the beach", seed=1, size=(120, 128)).picture
    mask = judge(pad_picture(picture)[None]).masks("tiger")[0, :120] > 0.5
    scores = [
        judge.score(picture, picture, "a tiger on the beach", target, mask)
        for target in ("a tiger at sea", "a cat at sea", "the sea")
    ]
    assert [score["success"] for score in scores[:2]] == [1, 0] and math.isnan(scores[2]["success"])
    assert math.isnan(scores[0]["mask_iou"]) and scores[1]["mask_iou"] == scores[2]["mask_iou"] == 1
    assert judge.score(picture, picture, "a tiger", "a cat", ~mask)["mask_iou"] == 0


def test_a_render_matches_its_own_scene_and_not_the_target_of_its_edit(judge):
    own_matches = target_matches = 0
    cases = [case for case in CASES[:70] if case.kind in ("object", "colour", "background", "style", "two")]
    for case in cases:
        picture = read_picture(case)
        words = case.source.replace(",", "").split(" ")
        scene = {"objects": [name for name in judge.config.objects if name in words], "gone": []}
        own_matches += judge.matches(picture, scene)
        target_matches += judge.matches(picture, case.expected)
        assert not (judge.matches(picture, scene) and judge.matches(picture, scene | {"gone": scene["objects"]}))
    assert own_matches >= 0.95 * len(cases) and target_matches <= 0.05 * len(cases)


@pytest.mark.parametrize("kind, key", [("colour", "colours"), ("background", "background"), ("style", "style")])
def test_a_render_matches_its_own_colour_background_and_style_and_no_other(judge, kind, key):
    """With one of them changed to that of the target, and all else as it is."""
    own_matches = changed_matches = 0
    for n in range(12):
        case, (before, _) = CASES[7 * n + KINDS.index(kind)], scene_pair(kind, n)
        picture = read_picture(case)
        true_value = (
            getattr(before, kind) if kind != "colour" else {thing.name: thing.colour for thing in before.things}
        )
        objects = {"objects": [thing.name for thing in before.things], "gone": []}
        own_matches += judge.matches(picture, objects | {key: true_value})
        changed_matches += judge.matches(picture, objects | {key: case.expected[key]})
    assert own_matches >= 11 and changed_matches <= 1
