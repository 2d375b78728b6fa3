"""Rendered pictures with their true labels, for the judge's training and its examination.

Axes: b batch, H W height and width of a picture, n objects, k attributes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from minip2p.tiny.judge_network import JudgeConfig
from minip2p.tiny.render import Render, render, stack_pictures
from minip2p.tiny.scenes import Scene
from minip2p.tiny.sprites import Sprites
from minip2p.vae import VAE

IGNORE_LABEL = -100  # the label that F.cross_entropy ignores


@dataclass(frozen=True)
class LabelledBatch:
    """Pictures b 3 H W in [-1, 1] and what they show.

    labels: b H W, 0 for no object, else 1 + its index. present: b n, 0 or 1. colours: b n, the index of each object's
    colour, or IGNORE_LABEL where it cannot be told. background: b. style: b. strength: b k.
    """

    pictures: Tensor
    labels: Tensor
    present: Tensor
    colours: Tensor
    background: Tensor
    style: Tensor
    strength: Tensor


@torch.no_grad()
def reconstruct(vae: VAE, pictures: Tensor) -> Tensor:
    """Pictures b 3 H W in [-1, 1], encoded and decoded by the VAE."""
    return vae.decode(vae.encode(pictures)[0]).clamp(-1, 1)


def corrupt_picture(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Degrades a picture H W 3 uint8 slightly, as an autoencoder might. One in four stays as it is."""
    if rng.random() < 0.25:
        return picture
    image = Image.fromarray(picture)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0)))
    if rng.random() < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(40, 91)))
        image = Image.open(file)
    pixels = np.asarray(image, float)
    if rng.random() < 0.5:
        pixels = pixels * rng.uniform(0.93, 1.07) + rng.uniform(-9, 9) + rng.uniform(-3, 3, 3)
    if rng.random() < 0.4:
        pixels = pixels + rng.normal(0, rng.uniform(1, 8), pixels.shape)
    return np.clip(pixels, 0, 255).round().astype(np.uint8)


def labelled_batch(
    scenes: Sequence[Scene], sprites: Sprites, config: JudgeConfig, corrupt_seed: int | None = None
) -> LabelledBatch:
    """Renders and labels scenes. corrupt_seed: the seed for `corrupt_picture`; None leaves the pictures as they are."""
    return label_renders(scenes, [render(scene, sprites) for scene in scenes], config, corrupt_seed)


def label_renders(
    scenes: Sequence[Scene], renders: Sequence[Render], config: JudgeConfig, corrupt_seed: int | None = None
) -> LabelledBatch:
    """Labels the renders of scenes. corrupt_seed as for `labelled_batch`."""
    if corrupt_seed is not None:
        rngs = [np.random.default_rng((corrupt_seed, scene.seed)) for scene in scenes]
        corrupted = [corrupt_picture(r.picture, rng) for r, rng in zip(renders, rngs, strict=True)]
        pictures = stack_pictures([replace(r, picture=c) for r, c in zip(renders, corrupted, strict=True)])
    else:
        pictures = stack_pictures(renders)
    labels = torch.zeros(len(scenes), *renders[0].picture.shape[:2], dtype=torch.long)
    present = torch.zeros(len(scenes), len(config.objects))
    colours = torch.full(present.shape, IGNORE_LABEL)
    strength = torch.zeros(len(scenes), len(config.attributes))
    for i, (scene, r) in enumerate(zip(scenes, renders, strict=True)):
        for thing in scene.things:
            word = config.objects.index(thing.name)
            labels[i][torch.from_numpy(r.masks[thing.name])] = 1 + word
            present[i, word] = 1
            if thing.colour and scene.style != "sketch":
                colours[i, word] = config.colours.index(thing.colour)
        if scene.attribute:
            strength[i, config.attributes.index(scene.attribute)] = scene.strength
    background = torch.tensor([config.backgrounds.index(s.background) for s in scenes])
    style = torch.tensor([config.styles.index(s.style) for s in scenes])
    return LabelledBatch(pictures.contiguous(), labels, present, colours, background, style, strength)
