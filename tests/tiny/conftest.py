import numpy as np
import pytest

from minip2p.tiny.scenes import OBJECTS
from minip2p.tiny.sprites import Sprites


def shaded_ball(name):
    """A shaded ball (64, 64, 4) uint8, in a hue that is repainted for this object."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    hue = np.array((110, 60, 220) if name == "umbrella" else (200, 120, 40) if name == "hat" else (220, 40, 120))
    rgb = hue * (0.8 + 0.2 * np.clip(-y, -1, 1))[..., None]
    return np.concatenate([rgb, 255.0 * (x**2 + y**2 < 0.9)[..., None]], -1).astype(np.uint8)


@pytest.fixture(scope="session")
def ball_arrays():
    """Object -> RGBA array: what `Sprites` takes. The tests need neither the emoji nor a network."""
    return {name: shaded_ball(name) for name in OBJECTS}


@pytest.fixture(scope="session")
def sprites(ball_arrays):
    """A ball for every object."""
    return Sprites(ball_arrays)
