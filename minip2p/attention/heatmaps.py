"""Where a word is: heat maps from attention, masks from heat maps.

Axes: b batch, h heads, i queries, j words, d width of a head; y x: rows and columns of a map.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minip2p.attention.contract import Attend, Site
from minip2p.validation import is_integer

ApplyAttention = Callable[[Tensor], Tensor]  # v 1 h j d -> Â v 1 h i d


def word_heatmaps(apply: Callable[[Tensor], Tensor], columns: Tensor, heads: int, width: int) -> Tensor:
    """Heat maps, words i: how much each query attends to each word, summed over its tokens, mean over the heads.

    A word's heat map is one more value column: A 1_word. `apply(v)` attends, v 1 h j d -> 1 h i d, whatever attention
    it stands for; d columns go in at a time, as v must be as wide as q for the fused kernel.
    """
    maps = []
    for some in columns.split(width):
        v = F.pad(some, (0, 0, 0, width - len(some))).mT.expand(1, heads, -1, -1)  # words j -> 1 h j d
        maps.append(apply(v)[0, :, :, : len(some)].mean(0).mT)
    return torch.cat(maps)


def map_size(latent: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of the map at a site: the latent's, halved once a level; odd sizes round up."""
    return -(-latent[0] // stride), -(-latent[1] // stride)


def default_strides(sites: Sequence[Site], latent: tuple[int, int], like: int = 16 * 16) -> tuple[int, ...]:
    """The stride that masks read where none is given: on the way down and up, that of the maps nearest to 16 × 16.

    At SD 1.5's 64² latents that is stride 4: the five cross-attention maps of the original. Selected by stride, not by
    position in a list, it is right for other geometries too. (The middle, one single map, is too coarse to count.)
    """

    def distance(stride: int) -> float:
        rows, cols = map_size(latent, stride)
        return abs(math.log(rows * cols / like))

    cross = [site for site in sites if site.cross]
    outer = [site for site in cross if site.place != "mid"] or cross
    return (min(sorted({site.stride for site in outer}), key=distance),)


def select_strides(given: Sequence[int] | None, sites: Sequence[Site], latent: tuple[int, int]) -> tuple[int, ...]:
    """The strides to read: those given, or the default. Raises ValueError for one that no cross-attention has."""
    have = {site.stride for site in sites if site.cross}
    if given is not None and not isinstance(given, list | tuple):
        raise ValueError(f"strides are several, as (2, 4), not {given!r}")
    if missing := set(given or ()) - have:
        raise ValueError(f"no cross-attention has stride {min(missing)}; this model's strides: {sorted(have)}")
    return tuple(given or default_strides(sites, latent))


def finest_self_stride(sites: Sequence[Site]) -> int:
    """The stride of the finest self-attention, by which heat can be spread."""
    return min((site.stride for site in sites if not site.cross), default=1)


@dataclass
class HeatmapAccumulator:
    """Heat maps of some words, summed over the sites and steps that are added. columns: words j; latent: its size.

    spread: how often the sum is multiplied by the finest self-attention, which makes the map as fine as that and lets a
    word's heat flow to pixels that are alike (see `total`); that attention's stride is `fine`.
    """

    indicators: Tensor
    latent_size: tuple[int, int]
    strides: tuple[int, ...]
    hops: int = 0
    finest_stride: int = 1
    sums: dict[int, Tensor] = field(default_factory=dict, init=False)
    count: int = field(default=0, init=False)
    self_attention: dict[Site, tuple[ApplyAttention, Tensor]] = field(
        default_factory=dict, init=False
    )  # self-attention, last step's

    def wants(self, site: Site) -> bool:
        asked = site.stride in self.strides if site.cross else self.hops > 0 and site.stride == self.finest_stride
        return asked and bool(self.indicators.any())

    def site_heatmap(self, site: Site, apply: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """What a site shows, words y x; like: its q, which tells heads, width, dtype and device."""
        made = word_heatmaps(apply, self.indicators.to(like), like.shape[1], like.shape[-1]).float()
        return rearrange(made, "w (y x) -> w y x", y=map_size(self.latent_size, site.stride)[0])

    def add(self, site: Site, seen: Tensor) -> None:
        self.sums[site.stride] = self.sums[site.stride] + seen if site.stride in self.sums else seen
        self.count += 1

    @property
    def total(self) -> Tensor:
        """The sum at the finest of the strides, words y x; coarser maps are brought there by their nearest pixel.

        Spread, it is A^n M: M the sum at the self-attention's own size, A that attention at the last step that was
        added, mean over its sites and heads. Rows of A sum to 1, so that shares stay shares. In value space: M is v.
        """
        if not self.sums:  # at guidance 0 no word is read
            return torch.zeros(len(self.indicators), *self.latent_size)
        size = map_size(
            self.latent_size, min(self.finest_stride, *self.sums) if self.self_attention else min(self.sums)
        )
        made: Tensor = sum(F.interpolate(one[None], size, mode="nearest")[0] for one in self.sums.values())  # type: ignore
        for _ in range(self.hops if self.self_attention else 0):
            seen = [
                word_heatmaps(apply, made.flatten(1).to(like), like.shape[1], like.shape[-1]).float()
                for apply, like in self.self_attention.values()
            ]
            made = torch.stack(seen).mean(0).reshape(made.shape)
        return made

    @property
    def mean(self) -> Tensor:
        """Mean over sites and steps, words y x: shares of attention, in [0, 1]."""
        return self.total / self.count


def accumulate_heat(heats: Sequence[HeatmapAccumulator], site: Site, apply: ApplyAttention, like: Tensor) -> None:
    """Adds what a site shows to all sums that want it; of those that want the same words it is asked once."""
    asked: list[tuple[Tensor, Tensor]] = []
    for heat_sum in heats:
        if heat_sum.wants(site) and not site.cross:
            heat_sum.self_attention[site] = apply, like
        elif heat_sum.wants(site):
            seen = next((seen for words, seen in asked if torch.equal(words, heat_sum.indicators)), None)
            if seen is None:
                seen = heat_sum.site_heatmap(site, apply, like)
                asked.append((heat_sum.indicators, seen))
            heat_sum.add(site, seen)


def check_hops(spread: Any) -> None:
    """Raises ValueError."""
    if not is_integer(spread) or not 0 <= spread <= 16:
        raise ValueError(f"spread is a whole number from 0 to 16, not {spread!r}")


def accumulate_heatmap(heat: HeatmapAccumulator, attend: Attend) -> Attend:
    """An `Attend` that adds what it sees to a heat map."""

    def watch(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        accumulate_heat([heat], site, lambda v: attend(q, k, v, site), q)
        return attend(q, k, v, site)

    return watch
