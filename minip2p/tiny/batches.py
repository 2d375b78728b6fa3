"""Batches for the training of the UNet: latents with captions, and which words name what where.

Axes: b batch, c latent channels, s slots (see `minip2p.tiny.grounding`), j tokens, h w height and width of a latent.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from minip2p.text.prompt import Prompt
from minip2p.tiny.grounding import token_slots
from minip2p.tiny.latents import CHUNK, MAX_SCENES, LatentCache, scenes_available
from minip2p.tiny.loop import seeded_generator
from minip2p.tiny.scenes import Scene, caption_for, dataset

UNET_BATCH = 64  # pictures in a step of the recipe, in which steps are counted
CAPTION_DROP = 0.1  # the share of empty captions, for classifier-free guidance (Ho & Salimans 2022)
VALIDATION = 256  # scenes


@dataclass(frozen=True)
class Batch:
    """Latents with their captions.

    latents: b c h w, unscaled. regions: b s h w, the share of each latent pixel that each slot covers. token_ids: b j.
    slots: b j, of each token (see `token_slots`), on the CPU.
    """

    latents: Tensor
    regions: Tensor
    token_ids: Tensor
    slots: Tensor


class BatchSource(Protocol):
    """Where the training of the UNet takes its batches from."""

    def batch(self, step: int, age: int, size: int) -> Batch:
        """The batch of a step, always the same. age: the number of pictures since the start of the training."""

    def validation(self) -> Batch:
        """Scenes that are never trained on, although they are of the training's combinations. Always the same."""

    def scaling_factor(self) -> float:
        """One over the standard deviation of the latents."""


def draw_captions(
    seed: int, step: int, indices: Tensor, *, drop: float = CAPTION_DROP, directions: bool = False
) -> tuple[list[Scene], list[str]]:
    """The scenes of these numbers, and a new random caption for each. A share `drop` of the captions is empty.

    directions: see `caption_for`.
    """
    rng, scenes, captions = np.random.default_rng((seed, step, 2)), [], []
    for i in indices.tolist():
        scene = next(dataset(seed, 1, start=i))
        caption = random_caption(rng, scene, directions)
        scenes.append(scene)
        captions.append("" if rng.random() < drop else caption)
    return scenes, captions


def random_caption(rng: np.random.Generator, scene: Scene, directions: bool) -> str:
    """A new caption of a scene. directions: see `caption_for`."""
    return caption_for(
        rng, scene.things, scene.background, scene.style, scene.attribute, scene.strength, directions=directions
    )


def draw_indices(seed: int, step: int, size: int, available: int) -> Tensor:
    """The numbers of the scenes of a step."""
    return torch.randint(0, available, (size,), generator=seeded_generator(seed, step, 3))


@dataclass(frozen=True)
class CachedScenes:
    """Batches from the cache of latents on disk, with new captions at every step: for the training on a CPU."""

    latents: LatentCache
    tokenizer: Any
    directions: bool

    def batch(self, step: int, age: int, size: int) -> Batch:
        indices = draw_indices(self.latents.seed, step, size, scenes_available(UNET_BATCH * step))
        scenes, captions = draw_captions(self.latents.seed, step, indices, directions=self.directions)
        return self.captioned(self.latents[indices], self.latents.regions(indices), scenes, captions)

    def validation(self) -> Batch:
        chunk = self.latents.load_chunk(MAX_SCENES // CHUNK)  # the first that no training draws from
        indices = torch.arange(MAX_SCENES, MAX_SCENES + VALIDATION)
        scenes, captions = draw_captions(self.latents.seed, 0, indices, drop=0, directions=self.directions)
        latents, regions = (chunk[name][:VALIDATION].float() for name in ("latents", "regions"))
        return self.captioned(latents, regions / 255, scenes, captions)

    def scaling_factor(self) -> float:
        return self.latents.scaling_factor()

    def captioned(self, latents: Tensor, regions: Tensor, scenes: list[Scene], captions: list[str]) -> Batch:
        prompts = [Prompt.tokenize(caption, self.tokenizer) for caption in captions]
        slots = [token_slots(scene, prompt) for scene, prompt in zip(scenes, prompts, strict=True)]
        return Batch(latents, regions, torch.tensor([prompt.ids for prompt in prompts]), torch.tensor(slots))
