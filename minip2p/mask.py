"""Where a word is: heat maps from attention, masks from heat maps.

Axes: b batch, h heads, i queries, j words, d width of a head; y x: rows and columns of a map.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minip2p.attention import Site
from minip2p.config import is_finite, is_whole
from minip2p.words import Prompt


def columns(prompt: Prompt, words: Iterable[Any]) -> Tensor:
    """1_word for each word: words j, 1 at the word's tokens. Raises ValueError for a word that is not there."""
    found = [prompt.find(word) for word in words]
    out = torch.zeros(len(found), len(prompt.ids))
    for row, tokens in enumerate(found):
        out[row, list(tokens)] = 1
    return out


def heat(apply: Callable[[Tensor], Tensor], columns: Tensor, heads: int, width: int) -> Tensor:
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


def over_sites(mask: Tensor, latent: tuple[int, int], sites: Sequence[Site]) -> dict[int, Tensor]:
    """A mask H W as m of the queries at each stride, i in [0, 1]: what it covers of each."""
    sizes = {site.stride: map_size(latent, site.stride) for site in sites}
    return {n: F.interpolate(mask[None, None], size, mode="area").flatten() for n, size in sizes.items()}


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


def chosen_strides(given: Sequence[int] | None, sites: Sequence[Site], latent: tuple[int, int]) -> tuple[int, ...]:
    """The strides to read: those given, or the default. Raises ValueError for one that no cross-attention has."""
    have = {site.stride for site in sites if site.cross}
    if given is not None and not isinstance(given, list | tuple):
        raise ValueError(f"strides are several, as (2, 4), not {given!r}")
    if missing := set(given or ()) - have:
        raise ValueError(f"no cross-attention has stride {min(missing)}; this model's strides: {sorted(have)}")
    return tuple(given or default_strides(sites, latent))


def finest(sites: Sequence[Site]) -> int:
    """The stride of the finest self-attention, by which heat can be spread."""
    return min((site.stride for site in sites if not site.cross), default=1)


Apply = Callable[[Tensor], Tensor]  # v 1 h j d -> A v 1 h i d


@dataclass
class HeatSum:
    """Heat maps of some words, summed over the sites and steps that are added. columns: words j; latent: its size.

    spread: how often the sum is multiplied by the finest self-attention, which makes the map as fine as that and lets a
    word's heat flow to pixels that are alike (see `total`); that attention's stride is `fine`.
    """

    columns: Tensor
    latent: tuple[int, int]
    strides: tuple[int, ...]
    spread: int = 0
    fine: int = 1
    sums: dict[int, Tensor] = field(default_factory=dict, init=False)
    count: int = field(default=0, init=False)
    pixels: dict[Site, tuple[Apply, Tensor]] = field(default_factory=dict, init=False)  # self-attention, last step's

    def wants(self, site: Site) -> bool:
        asked = site.stride in self.strides if site.cross else self.spread > 0 and site.stride == self.fine
        return asked and bool(self.columns.any())

    def seen(self, site: Site, apply: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """What a site shows, words y x; like: its q, which tells heads, width, dtype and device."""
        made = heat(apply, self.columns.to(like), like.shape[1], like.shape[-1]).float()
        return rearrange(made, "w (y x) -> w y x", y=map_size(self.latent, site.stride)[0])

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
            return torch.zeros(len(self.columns), *self.latent)
        size = map_size(self.latent, min(self.fine, *self.sums) if self.pixels else min(self.sums))
        made: Tensor = sum(F.interpolate(one[None], size, mode="nearest")[0] for one in self.sums.values())  # type: ignore
        for _ in range(self.spread if self.pixels else 0):
            seen = [heat(apply, made.flatten(1).to(like), like.shape[1], like.shape[-1]).float()
                    for apply, like in self.pixels.values()]  # fmt: skip
            made = torch.stack(seen).mean(0).reshape(made.shape)
        return made

    @property
    def mean(self) -> Tensor:
        """Mean over sites and steps, words y x: shares of attention, in [0, 1]."""
        return self.total / self.count


def add_heat(heats: Sequence[HeatSum], site: Site, apply: Apply, like: Tensor) -> None:
    """Adds what a site shows to all sums that want it; of those that want the same words it is asked once."""
    asked: list[tuple[Tensor, Tensor]] = []
    for heat_sum in heats:
        if heat_sum.wants(site) and not site.cross:
            heat_sum.pixels[site] = apply, like
        elif heat_sum.wants(site):
            seen = next((seen for words, seen in asked if torch.equal(words, heat_sum.columns)), None)
            if seen is None:
                seen = heat_sum.seen(site, apply, like)
                asked.append((heat_sum.columns, seen))
            heat_sum.add(site, seen)


def mask_of(heat: Tensor, size: tuple[int, int], threshold: Any, pool: bool = True, smooth: bool = False) -> Tensor:
    """A mask h w from a heat map y x (Hertz et al. 2022, local editing; the published code's steps):

        3 × 3 max-pool, nearest upsampling, divide by the maximum, > threshold

    smooth: bicubic upsampling instead. threshold: see `cut`.
    """
    heat = heat.clamp(min=0)  # a negative weight makes negative heat: nothing to divide by, and nowhere to be
    if pool:
        heat = F.max_pool2d(heat[None], 3, stride=1, padding=1)[0]
    heat = F.interpolate(heat[None, None], size, mode="bicubic" if smooth else "nearest")[0, 0].clamp(min=0)
    return cut(heat / heat.max(), threshold)


def cut(heat: Tensor, threshold: Any) -> Tensor:
    """A mask from heat in [0, 1], y x: bool above the threshold, a number or "otsu"; or "85%": above so many percent of
    the pixels; or, for (low, high), soft: 0 up to low, 1 from high on, and a ramp between. NaN, as of no heat, is 0."""
    if isinstance(threshold, tuple):
        low, high = threshold
        return ((heat - low) / (high - low)).clamp(0, 1).nan_to_num(0)
    if threshold == "otsu":
        threshold = otsu(heat)
    elif isinstance(threshold, str):
        threshold = float(heat.float().quantile(float(threshold[:-1]) / 100))
    return heat > threshold


def otsu(values: Tensor) -> float:
    """The threshold for which the variance between the two classes is greatest (Otsu 1979), of all that part them:

    n_0 n_1 (μ_0 − μ_1)²
    """
    x = values.detach().cpu().flatten().double().sort().values
    count, below = torch.arange(1, len(x), dtype=torch.float64), x.cumsum(0)[:-1]
    rest = len(x) - count
    between = count * rest * (below / count - (x.sum() - below) / rest) ** 2
    return float(x[between.argmax()])


def check_spread(spread: Any) -> None:
    """Raises ValueError."""
    if not is_whole(spread) or not 0 <= spread <= 16:
        raise ValueError(f"spread is a whole number from 0 to 16, not {spread!r}")


def check_threshold(name: str, threshold: Any) -> None:
    """Raises ValueError for what `cut` cannot take."""
    percent = isinstance(threshold, str) and threshold.endswith("%") and threshold[:-1].replace(".", "", 1).isdecimal()
    pair = isinstance(threshold, tuple) and len(threshold) == 2 and all(is_finite(one) for one in threshold)
    if pair:
        good = 0 <= threshold[0] < threshold[1] <= 1
    elif percent:
        good = float(threshold[:-1]) < 100
    else:
        good = threshold == "otsu" or (is_finite(threshold) and 0 <= threshold <= 1)
    if not good:
        raise ValueError(f"{name} must lie between 0 and 1, not {threshold}; or it is \"otsu\", a percentage as "
                         '"85%", or a soft pair (low, high)')  # fmt: skip
