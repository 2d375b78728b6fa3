"""The tiny world, on sprites made here: a run of the tests needs no tarball and no network."""

from dataclasses import replace

import numpy as np
import pytest

from minip2p.tiny import draw, scenes
from minip2p.tiny.scenes import ANIMALS, ATTRIBUTES, BACKGROUNDS, COLOURS, STYLES, THINGS, dataset, render, sample_scene


def ball(name: str) -> np.ndarray:
    """A shaded ball (64, 64, 4) uint8 in a hue that takes this thing's paint."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    hue = np.array((110, 60, 220) if name == "umbrella" else (200, 120, 40) if name == "hat" else (220, 40, 120))
    rgb = hue * (0.8 + 0.2 * np.clip(-y, -1, 1))[..., None]
    return np.concatenate([rgb, 255.0 * (x**2 + y**2 < 0.9)[..., None]], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def sprites():
    return scenes.Sprites({name: ball(name) for name in ANIMALS + THINGS})


def test_the_world_has_the_lists_the_issue_names():
    assert [len(names) for names in (ANIMALS, THINGS, COLOURS, BACKGROUNDS, STYLES, ATTRIBUTES)] == [16, 14, 7, 8, 3, 3]
    assert set(scenes.PLACE_WORDS) == set(BACKGROUNDS) and set(scenes.ATTRIBUTE_WORDS) == set(ATTRIBUTES)


def test_a_scene_renders_to_the_same_bytes(sprites):
    again = scenes.Sprites({name: ball(name) for name in ANIMALS + THINGS})
    for scene in dataset(0, 24):
        first, second = render(scene, sprites), render(scene, again)
        assert first.picture.shape == (draw.SIZE, draw.SIZE, 3) and first.picture.dtype == np.uint8
        np.testing.assert_array_equal(first.picture, second.picture)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("style", STYLES)
def test_every_place_renders_in_every_style(sprites, background, style):
    picture = render(next(dataset(1, 1, background=background, style=style)), sprites).picture
    assert picture.std() > 5 and (style != "sketch" or np.ptp(picture, -1).max() == 0)


def test_masks_are_disjoint_and_leave_no_pixel_out(sprites):
    for scene in dataset(2, 30):
        masks = render(scene, sprites).masks
        assert set(masks) == {scene.background, *(t.name for t in scene.things)}
        np.testing.assert_array_equal(sum(m.astype(int) for m in masks.values()), 1)


def test_a_mask_covers_what_was_drawn(sprites):
    for scene in dataset(3, 12, objects=1, style="photo", attribute=None):
        thing = scene.things[0]
        mask = render(scene, sprites).masks[thing.name]
        rows, columns = np.nonzero(mask)
        assert abs(columns.mean() - thing.x) < 1.5 and abs(rows.max() + 1 - thing.foot) < 1.5
        assert mask.sum() == pytest.approx(np.pi / 4 * thing.size**2, rel=0.1)  # the ball fills its box


def test_two_objects_stay_apart_and_the_nearer_one_is_whole(sprites):
    for scene in dataset(4, 60, objects=2):
        areas = [render(replace(scene, things=(t,)), sprites).masks[t.name] for t in scene.things]
        both = render(scene, sprites).masks
        assert (areas[0] & areas[1]).sum() < 0.1 * min(a.sum() for a in areas)
        nearer = max(range(2), key=lambda i: scene.things[i].foot)
        np.testing.assert_array_equal(both[scene.things[nearer].name], areas[nearer])


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_takes_its_colour(sprites, colour):
    for name in THINGS:
        pixels = np.asarray(sprites.images[name, colour])
        median = np.median(pixels[pixels[..., 3] > 200][:, :3], axis=0)
        nearest = min(draw.PAINT, key=lambda c: np.abs(median - draw.PAINT[c]).sum())
        assert nearest == colour, name


def test_the_held_out_split_never_moves():
    """Pinned: a hash that changed would leak held-out combinations into training."""
    held = [
        (n, c, b)
        for n in ANIMALS + THINGS
        for c in (COLOURS if n in THINGS else (None,))
        for b in BACKGROUNDS
        if scenes.combination_held_out(n, c, b)
    ]
    assert len(held) == 97
    assert [b for n, _, b in held if n in ("dog", "cow", "lion")] == ["snow", "sea", "grass", "snow", "beach", "night"]
    assert not any(n == "cat" for n, _, _ in held)


def test_the_splits_are_disjoint():
    def combinations(held_out):
        return [{(t.name, t.colour, s.background) for t in s.things} for s in dataset(5, 300, held_out=held_out)]

    held = [c for scene in combinations(True) for c in scene if scenes.combination_held_out(*c)]
    assert not set(held) & set().union(*combinations(False))
    assert all(scenes.is_held_out(s) for s in dataset(6, 40, held_out=True))
    with pytest.raises(ValueError, match="held_out=True"):
        sample_scene(np.random.default_rng(0), held_out=True, names=("cat",))


def test_scene_i_depends_on_seed_and_i_alone():
    ten = list(dataset(7, 10))
    assert ten[:3] == list(dataset(7, 3)) and ten[6:] == list(dataset(7, 4, start=6))
    assert ten != list(dataset(8, 10))


def test_captions_name_what_is_there():
    for scene in dataset(9, 400):
        words = scene.caption.replace(",", "").split()
        assert all(words.count(t.name) == 1 for t in scene.things)
        assert ("sketch" in words, "watercolor" in words) == (scene.style == "sketch", scene.style == "watercolor")
        assert set(words) & set(COLOURS) <= {t.colour for t in scene.things}
        assert set(words) & set(BACKGROUNDS) <= {scene.background, scene.attribute}
        assert scene.attribute is None or scene.attribute in words
        assert "  " not in scene.caption and scene.caption == scene.caption.strip()


def test_captions_vary_in_what_they_leave_out():
    captions = [
        s.caption
        for s in dataset(
            10, 400, names=("chair",), colours=("blue",), background="beach", style="photo", attribute=None
        )
    ]
    assert {
        "a blue chair on the beach",
        "a photo of a blue chair at the beach",
        "on the beach, a blue chair",
        "a blue chair",
        "a chair on the beach",
    } <= set(captions)
    full = [s.caption for s in dataset(11, 50, names=("chair",), name_place=True, name_colour=True)]
    assert all(set(c.replace(",", "").split()) & set(COLOURS) for c in full)


def test_a_faint_attribute_is_not_named_and_only_known_things_can_be_fixed():
    assert "fog" not in next(dataset(12, 1, attribute="fog", strength=0.1)).caption
    with pytest.raises(ValueError, match="weather"):
        sample_scene(np.random.default_rng(0), weather="rain")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_an_attribute_grows_with_its_strength(sprites, attribute, style):
    """The farther from the bare scene, the stronger; each step by an amount that can be measured."""
    for scene in dataset(13, 6, background="night", attribute=attribute, style=style):
        shown = [render(replace(scene, strength=s), sprites).picture.astype(float) for s in (0, 0.25, 0.5, 0.75, 1)]
        change = [np.abs(picture - shown[0]).mean() for picture in shown]
        assert np.all(np.diff(change) > 0.2), change


def test_sprites_that_cannot_be_fetched_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    with pytest.raises(ValueError, match="not there, and npm pack .* could not fetch it: .*npm"):
        scenes.fetch_sprites(tmp_path)


def test_missing_sprites_are_named(tmp_path, sprites):
    with pytest.raises(ValueError, match="fetch_sprites"):
        scenes.Sprites.load(tmp_path / "none.tgz")
    with pytest.raises(ValueError, match="grey cat"):
        sprites.image(scenes.Thing("cat", "grey", 64, 100, 50, False))
    (tmp_path / scenes.TARBALL).write_bytes(b"not it")
    with pytest.raises(ValueError, match="sha256"):
        scenes.fetch_sprites(tmp_path)
