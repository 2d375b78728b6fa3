"""Attention that several words share: a measure of it, and a map function that separates the words.

Two objects of a prompt often attend to the same pixels. Then they merge or exchange their colours, and the mask of one
contains the other. `SeparateWords` lets words compete for each pixel, under the same contract as everything else:

    pipe.edit(run, target, attend=explicit(SeparateWords(pipe.text.prompt(target), ("cat", "dog"))))

Axes: b batch, h heads, i queries, j words; y x: rows and columns of a heat map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import Site
from minip2p.io.tensors import to_device
from minip2p.text.prompt import Prompt, token_indicator
from minip2p.validation import is_finite


def overlap(a: Tensor, b: Tensor) -> float:
    """How much two heat maps, y x, overlap: Σ min(â, b̂), where â and b̂ are scaled to the sum 1. From 0 to 1."""
    return float(torch.minimum(a / a.sum(), b / b.sum()).sum())


class SeparateWords:
    """A `MapFn` by which words compete for each pixel.

    The probability p_w of word w at a pixel is multiplied by its share of the words' attention, mean over the heads, to
    the power γ − 1. All of them are then scaled so that their sum at the pixel does not change:

        p'_w = p_w r_w · Σ_u p_u / Σ_u p_u r_u,   r_w = (p̄_w / max_u p̄_u)^(γ − 1)

    So the attention of no other word changes, and none is created or lost. γ = 1 (`sharpness`) changes nothing; the
    larger γ is, the more a pixel belongs to the one word that attends to it most.
    """

    def __init__(self, prompt: Prompt, words: Sequence[Any], sharpness: float = 4.0):
        """words: at least two of the prompt, which share no token. Raises ValueError."""
        if not isinstance(words, list | tuple) or len(words) < 2:
            raise ValueError(f"SeparateWords takes two words or more, not {words!r}")
        if not is_finite(sharpness) or not 1 <= sharpness <= 100:
            raise ValueError(f"sharpness lies between 1 and 100, not {sharpness!r}")
        self.indicators, self.sharpness = token_indicator(prompt, words), sharpness
        if (self.indicators.sum(0) > 1).any():
            raise ValueError(f"the words to separate, {', '.join(map(str, words))}, share a token")

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        """b h i j -> b h i j; self-attention is not changed."""
        if not site.cross:
            return probs
        words = to_device(self.indicators, probs.device, probs.dtype)
        p = probs @ words.mT  # b h i w
        mean = p.mean(1, keepdim=True)
        share = mean / mean.amax(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        weighted = p * share.clamp(min=0) ** (self.sharpness - 1)
        total = weighted.sum(-1, keepdim=True)
        factor = torch.where(total > 0, weighted * p.sum(-1, keepdim=True) / total, p) / p.where(p != 0, 1)
        return probs * (1 - words.sum(0)) + probs * (factor @ words)
