"""Where objects of a picture are, for the page to draw."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from minip2p.p2p.warp import Move, ObjectEdit, PlacedObject


def place_json(word: str, mask: Tensor) -> dict[str, Any]:
    """The place of an object, H W bool. centre: (x, y) in pixels, about which it is resized."""
    y, x = PlacedObject(ObjectEdit(word, "move", Move()), mask).centre
    return {"centre": [x, y], "outline": outline(mask)}


def outline(mask: Tensor) -> list[list[tuple[int, int]]]:
    """The borders of a mask, H W bool, as closed lines of corners (x, y) of pixels, each a pixel from the last.

    The mask is on their right: around an area they run clockwise on the picture, around a hole in it the other way.
    """
    outside = ~F.pad(mask, (1, 1, 1, 1))
    next_corners: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Each side of a pixel: the neighbour there, and its first and its last corner.
    for (down, right), (x0, y0), (x1, y1) in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        neighbours = outside.roll((-down, -right), (0, 1))[1:-1, 1:-1]
        for y, x in (mask & neighbours).nonzero().tolist():
            next_corners.setdefault((x + x0, y + y0), []).append((x + x1, y + y1))
    lines = []
    while next_corners:  # as many sides begin at a corner as end there, so a line ends where it began
        corner, line = next(iter(next_corners)), []
        while corner in next_corners:
            line.append(corner)
            sides = next_corners[corner]
            following = sides.pop()
            if not sides:
                del next_corners[corner]
            corner = following
        lines.append(line)
    return lines
