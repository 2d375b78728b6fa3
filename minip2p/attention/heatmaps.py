"""Heat maps: how much each latent pixel attends to a word, summed over sites and steps.

A word's heat map is one more value column. With v = 1_word (1 at the word's tokens, 0 elsewhere), attention returns
A v, the sum of the map's columns at those tokens. So no map needs to be formed, whatever attention A stands for.

Axes: b batch, h heads, i queries, j keys, d width of a head; words: one row a word; y x: rows and columns of a map;
h w: rows and columns of the latent.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minip2p.attention.contract import Attend, HeadSelection, Site, SiteFilter
from minip2p.io.tensors import to_device
from minip2p.validation import is_integer

ApplyAttention = Callable[[Tensor], Tensor]  # v 1 h j d -> A v, 1 h i d: an attention whose q and k are fixed


def word_heatmaps(
    apply: ApplyAttention, indicators: Tensor, heads: int, width: int, selected: HeadSelection = None
) -> Tensor:
    """Heat maps A 1_word: words j -> words i, summed over each word's tokens, mean over the selected heads.

    apply: the attention. indicators: 1_word of each word, words j (see `minip2p.text.prompt.token_indicator`).
    width: the width d of a head. So many words go in at a time, as the fused kernel requires v to be as wide as q.
    """
    maps = []
    for chunk in indicators.split(width):
        v = F.pad(chunk, (0, 0, 0, width - len(chunk))).mT.expand(1, heads, -1, -1)  # words j -> 1 h j d
        heat = apply(v)[0, :, :, : len(chunk)]
        maps.append((heat if selected is None else torch.stack([heat[head] for head in selected])).mean(0).mT)
    return torch.cat(maps)


def map_size(latent_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of the map at a stride: the latent's, halved once a level; odd sizes round up."""
    return -(-latent_size[0] // stride), -(-latent_size[1] // stride)


def default_strides(sites: Sequence[Site], latent_size: tuple[int, int], target_area: int = 16 * 16) -> tuple[int, ...]:
    """The one stride that masks read by default: the one whose maps are nearest to 16 × 16, by the logarithm of area.

    For SD 1.5's 64 × 64 latents it is stride 4, the five cross-attention maps of the published code. That code selects
    the maps by their position in a list; selecting by stride also fits other sizes. The middle block is not considered
    if there are other cross-attention sites: its single map is too coarse.
    """

    def distance(stride: int) -> float:
        rows, columns = map_size(latent_size, stride)
        return abs(math.log(rows * columns / target_area))

    cross = [site for site in sites if site.cross]
    outer = [site for site in cross if site.place != "mid"] or cross
    return (min(sorted({site.stride for site in outer}), key=distance),)


def select_strides(
    strides: Sequence[int] | None, sites: Sequence[Site], latent_size: tuple[int, int]
) -> tuple[int, ...]:
    """The strides to read: the user's, or the default. Raises ValueError for a stride without cross-attention."""
    available = {site.stride for site in sites if site.cross}
    if strides is not None and not isinstance(strides, list | tuple):
        raise ValueError(f"strides must be a list or a tuple, such as (2, 4), not {strides!r}")
    if missing := set(strides or ()) - available:
        raise ValueError(f"no cross-attention has stride {min(missing)}; this model's strides: {sorted(available)}")
    return tuple(strides or default_strides(sites, latent_size))


def select_sites(
    sites: SiteFilter | None, selected_heads: Any, heads: Mapping[Site, int], latent_size: tuple[int, int]
) -> SiteFilter:
    """The cross-attention to read: the user's sites, by default those of `default_strides`, and heads.

    selected_heads: the indices of the heads to read, instead of those of `sites`; None for no choice. heads: the
    model's sites and their numbers of heads (`UNet.heads`). Raises ValueError where nothing would be read.
    """
    if sites is None:
        sites = SiteFilter(strides=default_strides(list(heads), latent_size))
    SiteFilter.validate(sites, heads)
    if selected_heads is not None:
        if sites.heads is not None:
            raise ValueError("the heads are named twice: by heads, and in sites")
        sites = replace(
            sites, heads=tuple(selected_heads) if isinstance(selected_heads, list | range) else selected_heads
        )
        sites.validate(heads)
    fewest = min((count for site, count in heads.items() if site.cross and sites.includes(site)), default=0)
    if not fewest:
        raise ValueError(f"there is no cross-attention at these sites: {sites}")
    if sites.heads is not None and max(sites.heads) >= fewest:
        raise ValueError(f"head {max(sites.heads)} is not at every site: one of these sites has {fewest} heads")
    return sites


def finest_self_stride(sites: Sequence[Site]) -> int:
    """The stride of the finest self-attention, along which heat can be spread; 1 if there is none."""
    return min((site.stride for site in sites if not site.cross), default=1)


@dataclass
class HeatmapAccumulator:
    """The heat maps of some words, summed over the sites and steps that are added.

    indicators: 1_word of each word, words j. latent_size: rows and columns. sites: the cross-attention to
    read, and its heads. hops: how often the sum is multiplied by the finest self-attention, at `finest_stride`. That
    makes the map as fine as that attention, and spreads a word's heat to pixels that attend to each other (see
    `total`).

    sums: stride -> the sum of the maps, words y x. count: the number of maps in them.
    self_attention: the finest self-attention at the last step, site -> its `apply` and its queries.
    """

    indicators: Tensor
    latent_size: tuple[int, int]
    sites: SiteFilter
    hops: int = 0
    finest_stride: int = 1
    sums: dict[int, Tensor] = field(default_factory=dict, init=False)
    count: int = field(default=0, init=False)
    self_attention: dict[Site, tuple[ApplyAttention, Tensor]] = field(default_factory=dict, init=False)

    def wants(self, site: Site) -> bool:
        """Whether the attention of a site is to be added."""
        if not self.indicators.any():
            return False
        if site.cross:
            return self.sites.includes(site)
        return self.hops > 0 and site.stride == self.finest_stride

    def adds_the_same(self, other: "HeatmapAccumulator") -> bool:
        """Whether another accumulator of this run adds the same heat maps, at the sites that both want."""
        return self.sites.heads == other.sites.heads and torch.equal(self.indicators, other.indicators)

    def site_heatmap(self, site: Site, apply: ApplyAttention, q: Tensor) -> Tensor:
        """The words' heat maps at one site, words y x. q: the site's queries, for their heads, width, dtype, device."""
        indicators = to_device(self.indicators, q.device, q.dtype)
        heat = word_heatmaps(apply, indicators, q.shape[1], q.shape[-1], self.sites.heads).float()
        return rearrange(heat, "words (y x) -> words y x", y=map_size(self.latent_size, site.stride)[0])

    def add(self, site: Site, heat: Tensor) -> None:
        """Adds the heat maps of a site, words y x."""
        self.sums[site.stride] = self.sums[site.stride] + heat if site.stride in self.sums else heat
        self.count += 1

    def copy(self) -> "HeatmapAccumulator":
        """The sums so far, which do not change as more is added here. The self-attention is left out."""
        other = replace(self)
        other.sums, other.count = dict(self.sums), self.count
        return other

    @property
    def total(self) -> Tensor:
        """The sum over all sites and steps, words y x, at the finest stride; coarser maps are resized to the nearest.

        With hops n > 0 it is Aⁿ M: M is the sum at the self-attention's size, A that self-attention at the last step,
        mean over its heads and sites. The rows of A sum to 1, so shares stay shares. M is the value that A is applied
        to, so A is not formed either. Zeros h w if nothing was added: at guidance 0 no word is read.
        """
        if not self.sums:
            return torch.zeros(len(self.indicators), *self.latent_size)
        finest = min(self.finest_stride, *self.sums) if self.self_attention else min(self.sums)
        size = map_size(self.latent_size, finest)
        heat = reduce(operator.add, (F.interpolate(maps[None], size, mode="nearest")[0] for maps in self.sums.values()))
        for _ in range(self.hops if self.self_attention else 0):
            spread = [
                word_heatmaps(apply, heat.flatten(1).to(q), q.shape[1], q.shape[-1]).float()
                for apply, q in self.self_attention.values()
            ]
            heat = torch.stack(spread).mean(0).reshape(heat.shape)
        return heat

    @property
    def mean(self) -> Tensor:
        """The mean over sites and steps, words y x: shares of attention in [0, 1]. Something must have been added."""
        return self.total / self.count


def accumulate_heat(accumulators: Sequence[HeatmapAccumulator], site: Site, apply: ApplyAttention, q: Tensor) -> None:
    """Adds the attention of a site to all accumulators that want it. What equal ones need is computed once."""
    computed: list[tuple[HeatmapAccumulator, Tensor]] = []
    for accumulator in accumulators:
        if not accumulator.wants(site):
            continue
        if not site.cross:
            accumulator.self_attention[site] = apply, q
            continue
        heat = next((heat for other, heat in computed if accumulator.adds_the_same(other)), None)
        if heat is None:
            heat = accumulator.site_heatmap(site, apply, q)
            computed.append((accumulator, heat))
        accumulator.add(site, heat)


def check_hops(hops: Any) -> None:
    """Raises ValueError if `hops` (of `HeatmapAccumulator`) is not a whole number from 0 to 16."""
    if not is_integer(hops) or not 0 <= hops <= 16:
        raise ValueError(f"self_attention_hops must be a whole number from 0 to 16, not {hops!r}")


def record_heatmaps(accumulator: HeatmapAccumulator, attend: Attend) -> Attend:
    """An `Attend` that also adds the attention of every site to an accumulator."""

    def record(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        accumulate_heat([accumulator], site, lambda v: attend(q, k, v, site), q)
        return attend(q, k, v, site)

    return record
