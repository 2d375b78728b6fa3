"""The contract of this project: attention is an argument. The network calls `attend(q, k, v, site) -> out`.

Every attention of the UNet goes through this one call and nothing else. To observe, edit or replace attention, pass
another function; no module is patched and no hook is registered. This file knows nothing of the UNet.

    fused                  the default `Attend`: softmax(q kᵀ / √d) v in one kernel, without forming a map
    explicit(map_fn)       an `Attend` that forms the map, passes it to `map_fn(probs, site)`, and applies the result
    chain(f, g, ...)       several map functions as one
    f.at(step)             optional, on either kind of function: its version for one sampling step (see `at_step`)
    f.unconditional        optional, on an `Attend`: the attention of the rows without words (see `unconditional_of`)

Axes, here and everywhere: b batch, h heads, i queries (latent pixels), j keys (words or pixels), d width of a head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.io.tensors import to_device


@dataclass(frozen=True, order=True)
class Site:
    """One attention layer of the UNet. It is fixed when the network is built and never depends on the input.

    place: the part of the UNet. index: the number of the transformer block within that part, in forward order.
    cross: True for cross-attention (the keys are words), False for self-attention (the keys are the queries' pixels).
    stride: latent pixels per query along each side; 1 at the latent's own resolution, 8 at SD 1.5's lowest level.
    """

    place: Literal["down", "mid", "up"]
    index: int
    cross: bool
    stride: int


# What the network calls: q b h i d, k b h j d, v b h j d, and the site -> b h i d.
Attend = Callable[[Tensor, Tensor, Tensor, Site], Tensor]

# An edit of attention maps: probs b h i j, and the site -> probs b h i j. `explicit` turns it into an `Attend`.
MapFn = Callable[[Tensor, Site], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor, site: Site | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v in one kernel, without forming the map. The default `Attend`."""
    return F.scaled_dot_product_attention(q, k, v)


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) (Vaswani et al. 2017, eq. 1): q b h i d, k b h j d -> b h i j, in q's dtype.

    It is computed in float32 or wider, as inside the fused kernel: in float16, q kᵀ may overflow.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    return ((q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).mT).softmax(-1).to(q.dtype)


@dataclass(frozen=True, eq=False)  # torch.compile of torch 2.11 hashes it before it has its field
class Explicit:
    """The `Attend` that `explicit` returns."""

    map_fn: MapFn

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """map_fn(softmax(q kᵀ / √d), site) v."""
        return self.map_fn(attention_map(q, k), site) @ v

    def at(self, step: int) -> "Explicit":
        """The same attention with its map function's version for sampling step `step` (see `at_step`)."""
        return Explicit(at_step(self.map_fn, step))


def explicit(map_fn: MapFn = lambda probs, site: probs) -> Explicit:
    """Attention that forms its map A = softmax(q kᵀ / √d) and returns map_fn(A, site) v.

    `map_fn` gets the map b h i j with its site, and returns the map to apply. The returned map is used as it is: it is
    not normalized again, so its rows need not sum to 1. Without a `map_fn` the result equals `fused` up to rounding.
    The map takes memory in proportion to i · j, which the fused kernel does not need.

    An ablation is a lambda: `pipe.generate(prompt, attend=explicit(lambda probs, site: probs.roll(1, -1)))`.
    """
    return Explicit(map_fn)


@dataclass(frozen=True)
class Chain:
    """The `MapFn` that `chain` returns."""

    map_fns: tuple[MapFn, ...]

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        """The map after all functions, the first one applied first."""
        for map_fn in self.map_fns:
            probs = map_fn(probs, site)
        return probs

    def at(self, step: int) -> "Chain":
        """The chain of the functions' versions for sampling step `step` (see `at_step`)."""
        return Chain(tuple(at_step(map_fn, step) for map_fn in self.map_fns))


def chain(*map_fns: MapFn) -> Chain:
    """Map functions applied one after the other, the first one first.

    A store in front of an edit keeps the map before it, a store behind it the map after it:
    `explicit(chain(store_before, edit, store_after))`.
    """
    return Chain(map_fns)


def at_step(function: Any, step: int) -> Any:
    """The version of an `Attend` or a `MapFn` for sampling step `step`; step 0 is the first and noisiest.

    The contract itself has no time: a function sees a site, not a step. One that depends on the step has a method
    `at(step)` that returns the function for that step, and the sampler calls it once per step. A function without the
    method is used at every step as it is. `explicit` and `chain` pass `at` on to the functions inside them.
    """
    return function.at(step) if hasattr(function, "at") else function


def unconditional_of(attend: Attend) -> Attend:
    """The attention of the rows without words, where `attend` is that of the rows with words.

    It is `fused`: an edit of attention is an edit of what the words do. An `Attend` that treats the other rows in some
    way has an attribute `unconditional`, an `Attend` as well.
    """
    return getattr(attend, "unconditional", fused)


# The queries 1 h i d and the keys 1 h j d of one image at one site. They determine its map, and are smaller.
QK = tuple[Tensor, Tensor]

# Whether to read or record a site, which has so many queries.
SitePredicate = Callable[[Site, int], bool]


HeadSelection = tuple[int, ...] | None  # the heads that an edit changes; None: all


def select_heads(heads: HeadSelection, edited: Tensor, unedited: Tensor) -> Tensor:
    """b h i ·: `edited` in these heads, `unedited` in the others."""
    if heads is None:
        return edited
    selected = to_device(torch.tensor([head in heads for head in range(unedited.shape[1])]), unedited.device)
    return torch.where(selected[:, None, None], edited, unedited)


@dataclass(frozen=True)
class SiteFilter:
    """Which sites, and which heads of them, an edit changes. For ablations.

    A site is included if its place, its stride and its index are each among those listed (see `Site`). None lists all.
    """

    places: tuple[str, ...] | None = None
    strides: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def includes(self, site: Site) -> bool:
        """Whether the filter includes a site."""
        criteria = (self.places, site.place), (self.strides, site.stride), (self.indices, site.index)
        return all(allowed is None or value in allowed for allowed, value in criteria)

    def validate(self, heads: Mapping[Site, int]) -> None:
        """Raises ValueError if the filter lists something that the model does not have.

        heads: the model's sites and their numbers of heads (`UNet.heads`). A caller that does not know whether the
        user passed a filter at all calls `SiteFilter.validate(value, heads)`.
        """
        if not isinstance(self, SiteFilter):
            raise ValueError(f"sites must be a SiteFilter, not {self!r}")
        max_heads = max(heads.values())
        for name, listed, available in (
            ("places", self.places, {site.place for site in heads}),
            ("strides", self.strides, {site.stride for site in heads}),
            ("indices", self.indices, {site.index for site in heads}),
            ("heads", self.heads, set(range(max_heads))),
        ):
            if listed is not None and (not isinstance(listed, tuple) or not listed or not available.issuperset(listed)):
                raise ValueError(f"{name} must be some of {sorted(available)}, as a tuple, not {listed!r}")


ALL_SITES = SiteFilter()
