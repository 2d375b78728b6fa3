"""Animations as files: their frames and times, and files that are refused."""

import pytest
from PIL import Image

from minip2p.io.animation import write_animation

COLOURS = ["red", "lime", "blue"]


@pytest.mark.parametrize("name", ["a.gif", "b.WEBP"])
def test_frames_and_times_are_read_back(tmp_path, name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in COLOURS]
    write_animation(tmp_path / "new" / name, frames, [0.1, 0.25, 1])
    with Image.open(tmp_path / "new" / name) as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (3, (8, 6), 0)
        for n, seconds in enumerate([100, 250, 1000]):
            animation.seek(n)
            colour = animation.convert("RGB").getpixel((4, 3))
            assert max(abs(a - b) for a, b in zip(colour, frames[n].getpixel((4, 3)), strict=True)) < 8
            assert animation.info["duration"] == seconds


def test_another_suffix_is_refused_and_an_error_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="a.mp4: an animation ends in .gif or .webp"):
        write_animation(tmp_path / "a.mp4", [Image.new("RGB", (8, 6))], [1])
    with pytest.raises(AttributeError):
        write_animation(tmp_path / "a.gif", [Image.new("RGB", (8, 6)), None], [1, 1])
    assert not list(tmp_path.iterdir())
