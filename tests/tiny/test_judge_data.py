"""The judge's data: the labels of rendered scenes, and corrupted pictures."""

import numpy as np
import pytest

from minip2p.tiny.judge_data import IGNORE_LABEL, corrupt_picture, labelled_batch
from minip2p.tiny.judge_network import JudgeConfig
from minip2p.tiny.render import render
from minip2p.tiny.scenes import dataset


def test_the_labels_are_true_to_the_scenes(sprites):
    drawn = list(dataset(0, 12))
    batch = labelled_batch(drawn, sprites, JudgeConfig())
    assert batch.pictures.shape == (12, 3, 128, 128) and batch.pictures.abs().max() <= 1
    for i, scene in enumerate(drawn):
        assert batch.present[i].sum() == len(scene.things)
        assert batch.strength[i].sum() == pytest.approx(scene.strength)
        for thing in scene.things:
            word = JudgeConfig().objects.index(thing.name)
            np.testing.assert_array_equal(batch.labels[i] == 1 + word, render(scene, sprites).masks[thing.name])
            has_colour = thing.colour is not None and scene.style != "sketch"
            assert (batch.colours[i, word] != IGNORE_LABEL) == has_colour


def test_corruption_is_mild_and_reproducible():
    picture = np.tile(np.linspace(60, 200, 128)[:, None, None], (1, 128, 3)).astype(np.uint8)
    unchanged = 0
    for seed in range(24):
        first, second = (corrupt_picture(picture, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.shape == picture.shape and np.abs(first.astype(float) - picture).mean() < 30
        unchanged += np.array_equal(first, picture)
    assert 0 < unchanged < 24
