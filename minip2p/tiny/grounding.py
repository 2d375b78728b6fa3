"""Grounding: the UNet learns to attend from each object's pixels to the words that name it.

The renderer knows the true mask of each object. While the UNet is trained, its cross-attention is asked to give the
words of an object a fixed share of the attention inside its mask, and none outside. This is the pixel loss of
TokenCompose (Wang et al. 2023, arXiv 2312.03626), with a share instead of all of the attention. Without it, a small
model gathers the caption in the padding tokens: the words get a few hundredths of the attention, which leaves little to
re-weight, to replace or to visualize. The maps are read through the usual contract, as `explicit(keeper)` with a
`MapFn`.

Axes: b batch, s slots, h heads, i queries, j tokens, n tokens of the batch that have a target, H W height and width of
the latent.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.contract import Attend, Site, fused
from minip2p.text.prompt import Prompt
from minip2p.tiny.render import Render
from minip2p.tiny.scenes import Scene

ATTENTION_SHARE = 0.5  # of the attention inside a mask; the rest is left to the padding and the other words
SLOTS = 4  # two objects, the background, the attribute


@dataclass
class MapKeeper:
    """A `MapFn` that keeps the maps of the cross-attentions with their graph, site -> b h i j, and changes nothing."""

    maps: dict[Site, Tensor] = field(default_factory=dict)

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        if site.cross:
            self.maps[site] = probs
        return probs


def fused_self_attention(attend: Attend) -> Attend:
    """The attention `attend` with the fused kernel in place of its self-attentions, whose maps are not needed."""
    return lambda q, k, v, site: (attend if site.cross else fused)(q, k, v, site)


def slot_regions(scene: Scene, render: Render) -> np.ndarray:
    """The share of each latent pixel that each slot's mask covers: s H W uint8, 255 for all of it.

    Fog and falling snow are everywhere; flowers are on the background below the horizon. An empty slot is 0.
    """
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


def token_slots(scene: Scene, prompt: Prompt) -> list[int]:
    """The slot of each token that the text encoder reads, -1 for a token without one.

    An object's tokens include its colour, if the prompt names it.
    """
    phrases = [f"{thing.colour} {thing.name}" if thing.colour else thing.name for thing in scene.things]
    phrases = [phrase if phrase in prompt.text else phrase.split()[-1] for phrase in phrases]
    phrases += [""] * (2 - len(phrases)) + [scene.background, scene.attribute or ""]
    words, slots = {word.text for word in prompt.words}, [-1] * len(prompt.ids)
    for slot, phrase in enumerate(phrases):
        if phrase and words.issuperset(phrase.split()):
            for j in prompt.token_indices(phrase):
                slots[j] = slot
    return slots


@dataclass(frozen=True)
class AttentionTargets:
    """The attention that tokens should get.

    regions: n H W in [0, 1], at each latent pixel. rows, columns: n, the caption of each token and its position there.
    """

    regions: Tensor
    rows: Tensor
    columns: Tensor


def attention_targets(slots: Tensor, regions: Tensor) -> AttentionTargets:
    """The targets of the tokens that have a slot. slots: b j, of each token (see `token_slots`), on the CPU, so that no
    GPU is asked how many there are. regions: b s H W in [0, 1], on any device.

    The tokens of a slot share its target: ATTENTION_SHARE · region divided by their number. The other tokens are free.
    """
    rows, columns = (slots >= 0).nonzero(as_tuple=True)
    of_token = slots[rows, columns]
    counts = (slots[rows] == of_token[:, None]).sum(1)
    rows, columns, of_token, counts = (
        index.to(regions.device, non_blocking=True) for index in (rows, columns, of_token, counts)
    )
    return AttentionTargets(ATTENTION_SHARE * regions[rows, of_token] / counts[:, None, None], rows, columns)


def grounding_loss(maps: dict[Site, Tensor], targets: AttentionTargets) -> Tensor:
    """Σ_sites mean_{tokens with a target, i} KL(target ‖ Ā), where Ā is a token's attention, averaged over the heads.

    target and Ā are read as probabilities of two outcomes: a query attends to the token, or not. The loss is 0 where
    each token with a target gets it. maps: site -> b h i j.
    """
    total = targets.regions.new_zeros(())
    if not len(targets.rows):  # every caption was dropped, or names nothing that has a region
        return total
    for site, probs in maps.items():
        target = F.avg_pool2d(targets.regions, site.stride).flatten(1)  # n i
        mean = probs.sum(1, dtype=torch.float32) / probs.shape[1]  # b i j
        attention = mean.mT[targets.rows, targets.columns].clamp(max=1)  # rounding may raise a mean of ones above one
        total = total + F.binary_cross_entropy(attention, target) - F.binary_cross_entropy(target, target)
    return total
