"""The renderer: reproducible pictures, and masks that say where each object is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minip2p.tiny.render import render, render_batch
from minip2p.tiny.scenes import ATTRIBUTES, BACKGROUNDS, SIZE, STYLES, dataset
from minip2p.tiny.sprites import Sprites


def test_a_scene_renders_to_the_same_bytes(sprites, ball_arrays):
    other_sprites = Sprites(ball_arrays)
    for scene in dataset(0, 24):
        first, second = render(scene, sprites), render(scene, other_sprites)
        assert first.picture.shape == (SIZE, SIZE, 3) and first.picture.dtype == np.uint8
        np.testing.assert_array_equal(first.picture, second.picture)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("style", STYLES)
def test_every_background_renders_in_every_style(sprites, background, style):
    picture = render(next(dataset(1, 1, background=background, style=style)), sprites).picture
    assert picture.std() > 5 and (style != "sketch" or np.ptp(picture, -1).max() == 0)


def test_masks_are_disjoint_and_cover_every_pixel(sprites):
    for scene in dataset(2, 30):
        masks = render(scene, sprites).masks
        assert set(masks) == {scene.background, *(thing.name for thing in scene.things)}
        np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), 1)


def test_a_mask_covers_its_object(sprites):
    for scene in dataset(3, 12, objects=1, style="photo", attribute=None):
        thing = scene.things[0]
        mask = render(scene, sprites).masks[thing.name]
        rows, columns = np.nonzero(mask)
        assert abs(columns.mean() - thing.x) < 1.5 and abs(rows.max() + 1 - thing.foot) < 1.5
        assert mask.sum() == pytest.approx(np.pi / 4 * thing.size**2, rel=0.1)  # the ball fills its box


def test_two_objects_hardly_overlap_and_the_nearer_is_not_hidden(sprites):
    for scene in dataset(4, 60, objects=2):
        alone = [render(replace(scene, things=(t,)), sprites).masks[t.name] for t in scene.things]
        together = render(scene, sprites).masks
        assert (alone[0] & alone[1]).sum() < 0.1 * min(mask.sum() for mask in alone)
        nearer = max(range(2), key=lambda i: scene.things[i].foot)
        np.testing.assert_array_equal(together[scene.things[nearer].name], alone[nearer])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_an_attribute_grows_with_its_strength(sprites, attribute, style):
    """The distance from the scene without it grows with the strength, and each step is large enough to measure."""
    for scene in dataset(13, 6, background="night", attribute=attribute, style=style):
        pictures = [render(replace(scene, strength=s), sprites).picture.astype(float) for s in (0, 0.25, 0.5, 0.75, 1)]
        change = [np.abs(picture - pictures[0]).mean() for picture in pictures]
        assert np.all(np.diff(change) > 0.2), change


def test_a_batch_is_scaled_to_minus_one_to_one(sprites):
    drawn = list(dataset(14, 2))
    batch = render_batch(drawn, sprites)
    assert batch.shape == (2, 3, SIZE, SIZE) and batch.is_contiguous(memory_format=torch.channels_last)
    for picture, scene in zip(batch, drawn, strict=True):
        expected = torch.from_numpy(render(scene, sprites).picture).permute(2, 0, 1)
        torch.testing.assert_close((picture + 1) * 127.5, expected.float())
