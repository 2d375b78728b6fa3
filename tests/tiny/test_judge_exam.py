"""The examination of the judge: how it scores a verdict, by hand-made verdicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from judges import SMALL_JUDGE, random_judge

from minip2p.tiny.judge_data import IGNORE_LABEL, labelled_batch
from minip2p.tiny.judge_exam import EXAM_SEED, examine, rank_correlation, ranks, score_verdict
from minip2p.tiny.scenes import dataset


def test_rank_correlation_is_spearmans():
    a = torch.tensor([0.1, 0.4, 0.4, 0.9])
    assert ranks(a).tolist() == [1, 2.5, 2.5, 4]
    assert rank_correlation(a, a**3) == pytest.approx(1) and rank_correlation(a, -a) == pytest.approx(-1)
    b = torch.tensor([1.0, 2, 3, 4, 5])
    assert rank_correlation(b, torch.tensor([2.0, 1, 4, 3, 5])) == pytest.approx(1 - 6 * 4 / (5 * 24))


def test_a_true_verdict_is_right_in_everything(sprites):
    """With the objects moved by one, no scene's objects are right."""
    batch = labelled_batch(list(dataset(3, 10)), sprites, SMALL_JUDGE)
    covers = F.one_hot(batch.labels, 31).movedim(3, 1)[:, 1:].float()
    classes = F.max_pool2d(covers, 9, 4, 4)  # wide enough to contain every pixel of the object
    verdict = replace(
        random_judge()(batch.pictures),
        objects=batch.present,
        foreground=covers.sum(1),
        classes=classes / classes.sum(1, keepdim=True).clamp_min(1),
        colours=F.one_hot(batch.colours.clamp_min(0), 7).float(),
        background=F.one_hot(batch.background, 8).float(),
        style=F.one_hot(batch.style, 3).float(),
    )
    scores = score_verdict(verdict, batch)
    assert all(min(values) == 1 for name, values in scores.items() if name != "iou") and np.mean(scores["iou"]) > 0.95
    assert len(scores["iou"]) == batch.present.sum()
    assert len(scores["colour"]) == (batch.colours != IGNORE_LABEL).sum()
    unsure = score_verdict(replace(verdict, objects=0.4 * batch.present), batch)  # the likeliest, and not likely
    assert min(unsure["object"]) == 1 and max(unsure["object_strict"]) == 0
    moved = score_verdict(replace(verdict, objects=batch.present.roll(1, 1)), batch)
    assert sum(moved["object"]) == 0 and moved["iou"] == scores["iou"]


def test_a_mask_is_where_the_probability_exceeds_one_half(sprites):
    """A probability of 0.4 for all other pixels does not change the IoU; 0.6 does."""
    batch = labelled_batch(list(dataset(3, 4, objects=1)), sprites, SMALL_JUDGE)
    covers = F.one_hot(batch.labels, 31).movedim(3, 1)[:, 1:].float()
    classes = batch.present[:, :, None, None].expand(-1, -1, 32, 32)
    verdict = random_judge()(batch.pictures)

    def ious(elsewhere):
        foreground = covers.sum(1).clamp_min(elsewhere)
        changed = replace(verdict, foreground=foreground, classes=classes, objects=batch.present)
        return score_verdict(changed, batch)["iou"]

    assert min(ious(0.4)) == 1 and max(ious(0.6)) < 0.9


def test_strengths_are_ranked_among_the_scenes_with_the_attribute(sprites):
    """The verdict has each true strength, and 2 where there is no attribute: the rank correlation is 1."""
    config = SMALL_JUDGE
    drawn = list(dataset(EXAM_SEED, 40, held_out=True))
    truth = labelled_batch(drawn, sprites, config).strength
    verdict = random_judge()(torch.zeros(40, 3, 128, 128))

    def judge(pictures):
        return replace(verdict, strength=torch.where(truth > 0, truth, 2.0))

    judge.config = config
    table = examine(judge, sprites, count=40)
    for name in config.attributes:
        count = sum(scene.attribute == name for scene in drawn)
        assert table[f"strength_{name}"] == (pytest.approx(1), count) and table[f"absent_{name}"] == (2, 40 - count)
