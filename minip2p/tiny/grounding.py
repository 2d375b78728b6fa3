"""Grounding: words learn to look where the thing stands that they name.

The renderer knows each thing's true mask, so while the UNet is trained, its cross-attention is asked to give the words
of a thing a fixed share of the attention inside the mask, and none outside: the pixel loss of TokenCompose (Wang et al.
2023, arXiv 2312.03626), with a share instead of all. Left alone, a small model gathers a caption in its padding: the
words get a few hundredths of the attention, and there is little to re-weight, to swap or to see. The maps come
through the same door as all else: `explicit(kept)`, where `kept` is a `MapFn`.

Axes: b pictures, s slots, h heads, i queries, j tokens, H W cells of the latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.text.prompt import Prompt
from minip2p.tiny.scenes import Render, Scene

ATTENTION_SHARE = 0.5  # of the attention inside a mask; the rest is the padding's and the other words'


SLOTS = 4  # two things, the place, the attribute


@dataclass
class MapKeeper:
    """A `MapFn` that changes nothing and keeps the maps of the cross-attentions with their graph: site -> b h i j."""

    maps: dict[Site, Tensor] = field(default_factory=dict)

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        if site.cross:
            self.maps[site] = probs
        return probs


def regions(scene: Scene, render: Render) -> np.ndarray:
    """How much of each cell of the latent a slot's mask covers: (SLOTS, H/8, W/8) uint8, 255 all of it.

    Fog and falling snow are everywhere, flowers in the place's part below the horizon. An empty slot is 0."""
    height, width = render.picture.shape[:2]
    masks = np.zeros((SLOTS, height, width), np.float32)
    for slot, thing in enumerate(scene.things):
        masks[slot] = render.masks[thing.name]
    masks[2] = render.masks[scene.background]
    if scene.attribute == "flowers":
        masks[3] = masks[2] * (np.arange(height) >= scene.horizon)[:, None]
    elif scene.attribute:
        masks[3] = 1
    cells = masks.reshape(SLOTS, height // 8, 8, width // 8, 8).mean((2, 4))
    return (255 * cells).round().astype(np.uint8)


def slot_tokens(scene: Scene, prompt: Prompt) -> list[tuple[int, ...]]:
    """For each slot the positions of its tokens in the prompt: a thing's with its colour's; () where it is unsaid."""
    phrases = [f"{thing.colour} {thing.name}" if thing.colour else thing.name for thing in scene.things]
    phrases = [phrase if phrase in prompt.text else phrase.split()[-1] for phrase in phrases]
    named = [*phrases, *[""] * (2 - len(phrases)), scene.background, scene.attribute or ""]
    words = {word.text for word in prompt.words}
    return [prompt.token_indices(phrase) if phrase and words.issuperset(phrase.split()) else () for phrase in named]


def target_attention(places: Sequence[Sequence[tuple[int, ...]]], masks: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The share of the attention that each token should get in each cell: b j H W; and which tokens have one: b j.

    places: for each picture, for each slot its tokens' positions. masks: b s H W in [0, 1]. The n tokens of a slot
    share it: SHARE · mask / n each. The other tokens are free.
    """
    aim = masks.new_zeros(len(masks), length, *masks.shape[2:])
    told = torch.zeros(aim.shape[:2], dtype=torch.bool)
    for b, slots in enumerate(places):
        for s, tokens in enumerate(slots):
            for j in tokens:
                aim[b, j] += ATTENTION_SHARE * masks[b, s] / len(tokens)
                told[b, j] = True
    return aim, told


def grounding_loss(maps: dict[Site, Tensor], aim: Tensor, told: Tensor) -> Tensor:
    """Σ_sites mean_{told b j, i} KL(aim ‖ Ā), a token's aim and its attention Ā (the heads' mean) in a cell taken as
    the probabilities of two outcomes: looks, looks not. It is 0 where each told token gets its aim."""
    total = aim.new_zeros(())
    if not told.any():  # all captions were dropped, or name nothing that has a place
        return total
    for site, probs in maps.items():
        asked = F.avg_pool2d(aim, site.stride).flatten(2)[told]  # n i
        given = (
            (probs.sum(1, dtype=torch.float32) / probs.shape[1]).mT[told].clamp(max=1)
        )  # a mean of ones may round above one
        total = total + F.binary_cross_entropy(given, asked) - F.binary_cross_entropy(asked, asked)
    return total
