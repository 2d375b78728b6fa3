"""The border of an object's place."""

import pytest
import torch

from minip2p.web.places import outline, place_json


def shoelace(line):
    """The area inside of a closed line; clockwise on a picture is positive."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(line, line[1:] + line[:1], strict=True)) / 2


def sides(line):
    return list(zip(line, line[1:] + line[:1], strict=True))


def test_a_square_with_a_hole():
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1:4, 2:5] = True
    mask[2, 3] = False
    around, hole = sorted(outline(mask), key=len, reverse=True)
    assert len(around) == 12 and shoelace(around) == 9 and len(hole) == 4 and shoelace(hole) == -1
    assert place_json("cat", mask)["centre"] == [3.5, 2.5]


@pytest.mark.parametrize("seed", range(20))
def test_the_border_has_each_side_between_inside_and_outside_once_and_the_area_of_the_mask(seed):
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(seed)) < 0.5
    lines = outline(mask)
    all_sides = [side for line in lines for side in sides(line)]
    padded = torch.nn.functional.pad(mask.int(), (1, 1, 1, 1))
    assert len(set(all_sides)) == len(all_sides) == sum(int(padded.diff(dim=dim).abs().sum()) for dim in (0, 1))
    assert all(abs(x1 - x0) + abs(y1 - y0) == 1 for (x0, y0), (x1, y1) in all_sides)
    assert sum(map(shoelace, lines)) == mask.sum()


def test_the_whole_picture_and_nothing():
    assert [len(line) for line in outline(torch.ones(3, 4, dtype=torch.bool))] == [14]
    assert outline(torch.zeros(3, 4, dtype=torch.bool)) == []
