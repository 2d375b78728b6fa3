"""Where a word is: heat maps from attention, masks from heat maps, and blending by masks.

Axes: b batch, h heads, i queries, j words, d width of a head; y x: rows and columns of a map.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from minip2p.attention import Site
from minip2p.config import is_finite
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
    if missing := set(given or ()) - have:
        raise ValueError(f"no cross-attention has stride {min(missing)}; this model's strides: {sorted(have)}")
    return tuple(given or default_strides(sites, latent))


@dataclass
class HeatSum:
    """Heat maps of some words, summed over the sites and steps that are added. columns: words j; latent: its size."""

    columns: Tensor
    latent: tuple[int, int]
    strides: tuple[int, ...]
    sums: dict[int, Tensor] = field(default_factory=dict, init=False)
    count: int = field(default=0, init=False)

    def wants(self, site: Site) -> bool:
        return site.cross and site.stride in self.strides and bool(self.columns.any())

    def seen(self, site: Site, apply: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """What a site shows, words y x; like: its q, which tells heads, width, dtype and device."""
        made = heat(apply, self.columns.to(like), like.shape[1], like.shape[-1]).float()
        return rearrange(made, "w (y x) -> w y x", y=map_size(self.latent, site.stride)[0])

    def add(self, site: Site, seen: Tensor) -> None:
        self.sums[site.stride] = self.sums[site.stride] + seen if site.stride in self.sums else seen
        self.count += 1

    @property
    def total(self) -> Tensor:
        """The sum at the finest of the strides, words y x; coarser maps are brought there by their nearest pixel."""
        if not self.sums:  # at guidance 0 no word is read
            return torch.zeros(len(self.columns), *self.latent)
        size = map_size(self.latent, min(self.sums))
        return sum(F.interpolate(one[None], size, mode="nearest")[0] for one in self.sums.values())  # type: ignore

    @property
    def mean(self) -> Tensor:
        """Mean over sites and steps, words y x: shares of attention, in [0, 1]."""
        return self.total / self.count


def add_heat(heats: Sequence[HeatSum], site: Site, apply: Callable[[Tensor], Tensor], like: Tensor) -> None:
    """Adds what a site shows to all sums that want it; of those that want the same words it is asked once."""
    asked: list[tuple[Tensor, Tensor]] = []
    for heat_sum in heats:
        if heat_sum.wants(site):
            seen = next((seen for words, seen in asked if torch.equal(words, heat_sum.columns)), None)
            if seen is None:
                seen = heat_sum.seen(site, apply, like)
                asked.append((heat_sum.columns, seen))
            heat_sum.add(site, seen)


def mask_of(heat: Tensor, size: tuple[int, int], threshold: float, pool: bool = True) -> Tensor:
    """A binary mask h w from a heat map y x (Hertz et al. 2022, local editing; the published code's steps):

    3 × 3 max-pool, nearest upsampling, divide by the maximum, > threshold
    """
    heat = heat.clamp(min=0)  # a negative weight makes negative heat: nothing to divide by, and nowhere to be
    if pool:
        heat = F.max_pool2d(heat[None], 3, stride=1, padding=1)[0]
    heat = F.interpolate(heat[None, None], size, mode="nearest")[0, 0]
    return heat / heat.max() > threshold


def own_mask(mask: Any) -> Tensor:
    """A user's mask as H W in [0, 1]: from a PIL image (white may change), an array or a tensor. Raises ValueError."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"), dtype=np.float32) / 255
    if not isinstance(mask, np.ndarray | Tensor):
        raise ValueError(f"a blend's own mask is an image, an array or a tensor, not {type(mask).__name__}")
    out = torch.as_tensor(mask).float()
    if out.ndim != 2 or not out.numel() or not torch.isfinite(out).all():
        raise ValueError(f"a blend's own mask must be rows × columns of finite numbers, not {tuple(out.shape)}")
    return out


@dataclass(frozen=True)
class Blend:
    """Local blending: outside of the mask, the target's latents are the source's.

    source, target: the words whose places may change, in either prompt (one, or a tuple of them, each as `Prompt.find`
    takes it); the mask is the union of both.
    without_source, without_target: words whose places may not. mask: an own mask instead of the words', H W: a tensor,
    an array or a PIL image, 1 or white where the picture may change; resized to the latent. threshold,
    without_threshold: of the heat map's maximum. pool: let the mask reach one pixel of the maps further, by a 3 × 3
    max-pool, as the published code does; without, it keeps to the words' places, and more of the source is kept. start:
    the share of the run from which on it blends. strides: of the maps that are read, `default_strides` where none are
    given.
    """

    source: tuple[Any, ...] = ()
    target: tuple[Any, ...] = ()
    without_source: tuple[Any, ...] = ()
    without_target: tuple[Any, ...] = ()
    mask: Any = None
    threshold: float = 0.3
    without_threshold: float = 0.3
    pool: bool = True
    start: float = 0.2
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("source", "target", "without_source", "without_target"):
            words = getattr(self, name)  # one word may stand alone
            object.__setattr__(self, name, tuple(words) if isinstance(words, list | tuple) else (words,))
        if (self.mask is None) == (not (self.source or self.target)):
            raise ValueError("a blend needs a word or a mask, and not both")
        for name in ("threshold", "without_threshold", "start"):
            if not is_finite(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"a blend's {name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.strides is not None and not isinstance(self.strides, list | tuple):
            raise ValueError(f"a blend's strides are several, as (2, 4), not {self.strides!r}")
        if self.mask is not None:
            object.__setattr__(self, "mask", own_mask(self.mask))

    @classmethod
    def of(cls, blend: "Blend | str | Sequence[Any] | None") -> "Blend | None":
        """What `edit` takes: a Blend, a word that both prompts have, or a (source word, target word)."""
        if blend is None or isinstance(blend, Blend):
            return blend
        if isinstance(blend, str):
            return cls((blend,), (blend,))
        if not isinstance(blend, Sequence) or len(blend) != 2:
            raise ValueError(f"a blend is a word, a (source word, target word) or a Blend, not {blend!r}")
        source, target = tuple(blend)
        return cls((source,), (target,))


@dataclass
class Blending:
    """A blend at work on one target: it sums heat as the run goes and mixes latents."""

    blend: Blend
    source: HeatSum
    target: HeatSum
    first_step: int
    last: Tensor | None = field(default=None, init=False)  # the mask that it blended by, h w bool

    @classmethod
    def begin(
        cls, blend: Blend, source: Prompt, target: Prompt, steps: int, latent: tuple[int, int], sites: Sequence[Site]
    ) -> "Blending":
        """Raises ValueError for words that are not in their prompt."""
        strides = chosen_strides(blend.strides, sites, latent)

        def summed(prompt: Prompt, words: tuple[Any, ...], without: tuple[Any, ...]) -> HeatSum:
            rows = [columns(prompt, group).sum(0).clamp(max=1) for group in (words, without)]
            return HeatSum(torch.stack(rows), latent, strides)

        return cls(blend, summed(source, blend.source, blend.without_source),
                   summed(target, blend.target, blend.without_target), int(blend.start * steps))  # fmt: skip

    def key(self, step: int) -> Any:
        """Equal for blendings that do the same at a step, to targets that have been the same so far."""
        if step < self.first_step:
            return None
        b, words = self.blend, [heat.columns.numpy().tobytes() for heat in (self.source, self.target)]
        own = None if b.mask is None else (tuple(b.mask.shape), b.mask.cpu().numpy().tobytes())
        return *words, own, b.threshold, b.without_threshold, b.pool, self.source.strides

    def mask(self) -> Tensor:
        """Where the target may differ, h w bool: (source's words ∪ target's words) minus what is kept out."""
        b, size = self.blend, self.source.latent
        out = torch.zeros(size, dtype=torch.bool)
        if b.mask is not None:
            out = F.interpolate(b.mask[None, None].float(), size, mode="area")[0, 0].cpu() >= 0.5
        for heat, words in ((self.source, b.source), (self.target, b.target)):
            if words and b.mask is None:
                out = out | mask_of(heat.total[0], size, b.threshold, b.pool).cpu()
        for heat, words in ((self.source, b.without_source), (self.target, b.without_target)):
            if words:
                out = out & ~mask_of(heat.total[1], size, b.without_threshold, pool=False).cpu()
        return out

    def __call__(self, step: int, source: Tensor, target: Tensor) -> Tensor:
        """x_s + m (x − x_s), b c h w: where m is 0 the source's latents to the bit, where it is 1 the target's."""
        if step < self.first_step:
            return target
        self.last = self.mask()
        return torch.where(self.last.to(target.device), target, source)
