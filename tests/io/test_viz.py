"""Panels, heat maps and masks as pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p.io import viz


def plain(columns, rows, colour="red"):
    return Image.new("RGB", (columns, rows), colour)


def test_more_heat_is_brighter_also_in_grey():
    ramp = viz.heat_colours(np.linspace(0, 1, 256)[None])
    lightness = ramp[0] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > -0.5).all()  # within what rounding to 256 levels allows
    assert (np.diff(lightness[::8]) > 0).all()
    assert ramp[0, 0].tolist() == list(viz.INFERNO[0]) and ramp[0, -1].tolist() == list(viz.INFERNO[-1])


def test_an_overlay_is_as_large_as_its_picture_and_scaled_by_its_own_maximum():
    heat = torch.zeros(4, 4)
    heat[0, 0] = 0.02
    picture = plain(32, 16)
    out = viz.overlay(picture, heat)
    assert out.size == picture.size
    assert np.asarray(out)[0, 0].sum() > np.asarray(out)[-1, -1].sum() + 200
    assert viz.overlay(picture, heat * 10).tobytes() == out.tobytes()
    assert viz.overlay(picture, heat * 0).size == picture.size  # a map of nothing is dark, and no division by zero


def test_a_mask_keeps_its_pixels():
    mask = torch.tensor([[True, False]])
    out = np.asarray(viz.mask_picture(mask, (8, 4)))
    assert out.shape == (4, 8, 3)
    assert (out[:, :4] == 255).all() and (out[:, 4:] == 0).all()
    assert np.asarray(viz.mask_picture(np.array([[0.2, 0.6]]), (2, 1)))[0, :, 0].tolist() == [51, 153]  # a soft mask


@pytest.mark.parametrize("size, large", [((128, 128), (256, 256)), ((64, 128), (256, 512)), ((512, 512), (512, 512))])
def test_small_pictures_are_enlarged_by_whole_numbers(size, large):
    assert viz.enlarge(plain(*size)).size == large


def test_a_grid_has_every_panel_at_its_place_and_room_for_the_captions():
    colours = ["red", "lime", "blue"]
    panels = [(plain(64, 64, colour), "") for colour in colours]
    sheet = viz.grid(panels, columns=2, least=64)
    gap = 64 // 32
    assert sheet.size == (2 * (64 + gap) + gap, 2 * (64 + 2 * gap) + gap)
    seen = np.asarray(sheet)
    middles = [(gap + 32, gap + 32), (gap + 32, 2 * gap + 96), (3 * gap + 96, gap + 32)]
    assert [tuple(seen[y, x]) for y, x in middles] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]

    captioned = viz.grid([(picture, "a long caption " * 8) for picture, _ in panels], columns=3)
    bare = viz.grid(panels, columns=3)
    assert captioned.width == bare.width and captioned.height > bare.height + 50
    assert np.asarray(captioned)[bare.height :].min() < 100, "there is something written under the pictures"
