"""Renders scenes of the tiny world: pictures, and the true mask of everything that a caption can name.

Axes: b batch, H W height and width of a picture (both `SIZE`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minip2p.tiny import draw
from minip2p.tiny.scenes import SIZE, Scene, Thing
from minip2p.tiny.sprites import Sprites


@dataclass(frozen=True)
class Render:
    """A picture, H W 3 uint8, and a mask, H W bool, for the name of each object and of the background."""

    picture: np.ndarray
    masks: Mapping[str, np.ndarray]


def paste(picture: np.ndarray, thing: Thing, sprites: Sprites) -> tuple[np.ndarray, np.ndarray]:
    """Puts an object and its shadow on the ground: the new picture, and the object's opacity, H W in [0, 1]."""
    sprite = sprites.image(thing)
    layer = Image.new("RGBA", (SIZE, SIZE))
    layer.paste(sprite, (round(thing.x - sprite.width / 2), round(thing.foot) - sprite.height))
    rgba = np.asarray(layer, np.float32) / 255
    alpha = rgba[..., 3]
    shadow = draw.soft_ellipse(thing.x, thing.foot - 1, 0.48 * sprite.width, 0.05 * thing.size)
    picture = draw.blend_colour(picture, (20, 20, 40), 0.45 * shadow)
    return picture + (rgba[..., :3] - picture) * alpha[..., None], alpha


def render(scene: Scene, sprites: Sprites) -> Render:
    """The scene's picture and masks. The object that stands lower is nearer and hides the other. Masks are disjoint;
    two things of the same name have one mask."""
    rng, detail_rng = np.random.default_rng((scene.seed, 0)), np.random.default_rng((scene.seed, 1))
    picture = draw.background(scene.background, scene.horizon, rng)
    if scene.attribute == "flowers":
        picture = draw.with_flowers(picture, scene.strength, scene.horizon, detail_rng)
    visible: list[tuple[str, np.ndarray]] = []  # objects, each with its opacity where no nearer object hides it
    for thing in sorted(scene.things, key=lambda t: t.foot):
        picture, alpha = paste(picture, thing, sprites)
        visible = [*((name, opacity * (1 - alpha)) for name, opacity in visible), (thing.name, alpha)]
    masks = {
        thing.name: np.any([opacity >= 0.5 for name, opacity in visible if name == thing.name], axis=0)
        for thing in scene.things
    }
    masks[scene.background] = ~np.any(list(masks.values()), axis=0)
    if scene.attribute == "fog":
        picture = draw.with_fog(picture, scene.strength, np.sum([opacity for _, opacity in visible], axis=0))
    if scene.attribute == "snow":
        picture = draw.with_snow(picture, scene.strength, detail_rng)
    if scene.style == "sketch":
        picture = draw.as_sketch(picture)
    if scene.style == "watercolor":
        picture = draw.as_watercolor(picture, detail_rng)
    return Render((np.clip(picture, 0, 1) * 255).round().astype(np.uint8), MappingProxyType(masks))


def stack_pictures(renders: Sequence[Render]) -> Tensor:
    """Renders as a batch for the VAE: b 3 H W in [-1, 1], in the channels_last memory format."""
    return torch.from_numpy(np.stack([r.picture for r in renders])).permute(0, 3, 1, 2).float() / 127.5 - 1


def render_batch(scenes: Sequence[Scene], sprites: Sprites) -> Tensor:
    """Scenes rendered as a batch: b 3 H W in [-1, 1]."""
    return stack_pictures([render(scene, sprites) for scene in scenes])
