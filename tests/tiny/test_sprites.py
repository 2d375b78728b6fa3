"""The sprites: their colours, and what happens if they cannot be fetched or read."""

import numpy as np
import pytest

from minip2p.tiny.scenes import COLOURS, THINGS, Thing
from minip2p.tiny.sprites import COLOUR_RGB, TARBALL, Sprites, fetch_sprites


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_takes_its_colour(sprites, colour):
    for name in THINGS:
        pixels = np.asarray(sprites.images[name, colour])
        median = np.median(pixels[pixels[..., 3] > 200][:, :3], axis=0)
        nearest = min(COLOUR_RGB, key=lambda c: np.abs(median - COLOUR_RGB[c]).sum())
        assert nearest == colour, name


def test_sprites_that_cannot_be_fetched_are_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    with pytest.raises(ValueError, match="is missing, and npm pack .* could not fetch it: .*npm") as error:
        fetch_sprites(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_or_wrong_tarball_and_a_missing_sprite_are_named(tmp_path, sprites):
    with pytest.raises(ValueError, match="fetch_sprites"):
        Sprites.load(tmp_path / "none.tgz")
    with pytest.raises(ValueError, match="grey cat"):
        sprites.image(Thing("cat", "grey", 64, 100, 50, False))
    (tmp_path / TARBALL).write_bytes(b"another file")
    with pytest.raises(ValueError, match="sha256"):
        fetch_sprites(tmp_path)
