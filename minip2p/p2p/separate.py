"""Attention that several words share: how much they do, and a map function that parts them.

Two things of a prompt often look at the same pixels, so that they merge or swap their colours, and a mask of the one
holds the other. Here the words compete for each pixel, after the edit, under the same contract as everything else:

    model.edit(run, target, attend=explicit(Separate(model.text.prompt(target), ("cat", "dog"))))

Axes: b batch, h heads, i queries, j words; y x: rows and columns of a heat map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.text.prompt import Prompt, token_indicator
from minip2p.validation import is_finite


def overlap(a: Tensor, b: Tensor) -> float:
    """How far two heat maps y x lie in the same places: Σ min(â, b̂), where â and b̂ sum to 1. From 0 (nowhere) to 1."""
    return float(torch.minimum(a / a.sum(), b / b.sum()).sum())


class SeparateWords:
    """A `MapFn` by which words compete for each pixel. What a word's tokens get there is multiplied by its share of the
    words' attention, mean over the heads, to the power γ − 1, and then brought back to the sum that they had (so that a
    share of the largest one's will do, which no power makes vanish):

        p'_w = p_w r_w · Σ_u p_u / Σ_u p_u r_u,   r_w = (p̄_w / max_u p̄_u)^(γ − 1)

    So no other word's attention changes and none is made or lost. γ = 1 (`sharpness`) changes nothing; the larger it
    is, the more the pixel is the one word's that looks there most.
    """

    def __init__(self, prompt: Prompt, words: Sequence[Any], sharpness: float = 4.0):
        """words: at least two of the prompt, which share no token. Raises ValueError."""
        if not isinstance(words, list | tuple) or len(words) < 2:
            raise ValueError(f"to separate takes two words or more, not {words!r}")
        if not is_finite(sharpness) or not 1 <= sharpness <= 100:
            raise ValueError(f"sharpness lies between 1 and 100, not {sharpness!r}")
        self.indicators, self.sharpness = token_indicator(prompt, words), sharpness
        if (self.indicators.sum(0) > 1).any():
            raise ValueError(f"the words to separate, {', '.join(map(str, words))}, share a token")

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        """b h i j -> b h i j."""
        if not site.cross:
            return probs
        words = self.indicators.to(probs)
        p = probs @ words.mT  # b h i w
        mean = p.mean(1, keepdim=True)
        share = mean / mean.amax(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        weighted = p * share.clamp(min=0) ** (self.sharpness - 1)
        rest = weighted.sum(-1, keepdim=True)
        factor = torch.where(rest > 0, weighted * p.sum(-1, keepdim=True) / rest, p) / p.where(p != 0, 1)
        return probs * (1 - words.sum(0)) + probs * (factor @ words)
