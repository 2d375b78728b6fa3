"""Heat maps, masks and contact sheets as images."""

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p.io import viz


def solid(columns, rows, colour="red"):
    return Image.new("RGB", (columns, rows), colour)


def test_more_heat_is_brighter_in_colour_and_in_grey():
    ramp = viz.heat_colours(np.linspace(0, 1, 256)[None])
    lightness = ramp[0] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > -0.5).all()  # the tolerance of rounding to 256 levels
    assert (np.diff(lightness[::8]) > 0).all()
    assert ramp[0, 0].tolist() == list(viz.INFERNO[0]) and ramp[0, -1].tolist() == list(viz.INFERNO[-1])


def test_an_overlay_has_the_size_of_its_image_and_scales_by_the_maximum_of_the_heat():
    heat = torch.zeros(4, 4)
    heat[0, 0] = 0.02
    image = solid(32, 16)
    out = viz.overlay(image, heat)
    assert out.size == image.size
    assert np.asarray(out)[0, 0].sum() > np.asarray(out)[-1, -1].sum() + 200
    assert viz.overlay(image, heat * 10).tobytes() == out.tobytes()
    assert viz.overlay(image, heat * 0).size == image.size  # no division by a maximum of zero


def test_maps_on_one_scale_are_as_bright_as_their_heat():
    heat, image = torch.full((4, 4), 0.25), solid(32, 16)
    full = viz.overlay(image, heat, maximum=0.25)
    assert full.tobytes() == viz.overlay(image, heat).tobytes()
    assert viz.overlay(image, heat / 2, maximum=0.25).tobytes() != full.tobytes()
    half = np.asarray(viz.overlay(image, heat / 2, 1.0, maximum=0.25))
    assert half[0, 0].tolist() == viz.heat_colours(np.array([[0.5]]))[0, 0].tolist()


def test_a_mask_is_enlarged_without_smoothing():
    mask = torch.tensor([[True, False]])
    out = np.asarray(viz.mask_image(mask, (8, 4)))
    assert out.shape == (4, 8, 3)
    assert (out[:, :4] == 255).all() and (out[:, 4:] == 0).all()
    assert np.asarray(viz.mask_image(np.array([[0.2, 0.6]]), (2, 1)))[0, :, 0].tolist() == [51, 153]  # a soft mask


@pytest.mark.parametrize(
    "size, enlarged", [((128, 128), (256, 256)), ((64, 128), (256, 512)), ((512, 512), (512, 512))]
)
def test_small_images_are_enlarged_by_whole_factors(size, enlarged):
    assert viz.enlarge(solid(*size)).size == enlarged


def test_a_grid_shows_every_panel_in_its_cell_and_has_room_for_captions():
    colours = ["red", "lime", "blue"]
    panels = [(solid(64, 64, colour), "") for colour in colours]
    sheet = viz.grid(panels, columns=2, min_side=64)
    gap = 64 // 32
    assert sheet.size == (2 * (64 + gap) + gap, 2 * (64 + 2 * gap) + gap)
    pixels = np.asarray(sheet)
    centres = [(gap + 32, gap + 32), (gap + 32, 2 * gap + 96), (3 * gap + 96, gap + 32)]
    assert [tuple(pixels[y, x]) for y, x in centres] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]

    captioned = viz.grid([(image, "a long caption " * 8) for image, _ in panels], columns=3)
    bare = viz.grid(panels, columns=3)
    assert captioned.width == bare.width and captioned.height > bare.height + 50
    assert np.asarray(captioned)[bare.height :].min() < 100, "captions are drawn below the images"
