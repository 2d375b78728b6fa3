"""Attention as an argument. Every attention of the UNet goes through one door, `attend(q, k, v, site) -> out`.

Axes, here and everywhere: b batch, h heads, i queries (latent pixels), j keys (words or pixels), d width of a head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, order=True)
class Site:
    """Where in the UNet an attention happens. Fixed when the module is built; it never changes with the input.

    place: the half of the UNet. index: which of the place's transformer blocks, in the order of the forward pass.
    cross: True where the keys are words, False where they are the queries' own pixels.
    stride: latent pixels per query and side (1 at the latent's own resolution, 8 at SD 1.5's lowest level).
    """

    place: Literal["down", "mid", "up"]
    index: int
    cross: bool
    stride: int


Attend = Callable[[Tensor, Tensor, Tensor, Site], Tensor]  # q: b h i d, k and v: b h j d -> b h i d


MapFn = Callable[[Tensor, Site], Tensor]  # probs: b h i j -> probs: b h i j


def fused(q: Tensor, k: Tensor, v: Tensor, site: Site | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v in one kernel: no map is ever formed. The default `Attend`."""
    return F.scaled_dot_product_attention(q, k, v)


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """The map itself, softmax(q kᵀ / √d) (Vaswani et al. 2017, eq. 1): q b h i d, k b h j d -> b h i j."""
    wide = torch.promote_types(q.dtype, torch.float32)  # as inside the fused kernel: in float16 q kᵀ may overflow
    return ((q.to(wide) * q.shape[-1] ** -0.5) @ k.to(wide).mT).softmax(-1).to(q.dtype)


@dataclass(frozen=True)
class Explicit:
    """See `explicit`."""

    map_fn: MapFn

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        return self.map_fn(attention_map(q, k), site) @ v

    def at(self, step: int) -> "Explicit":
        return Explicit(at_step(self.map_fn, step))


def explicit(edit: MapFn = lambda probs, site: probs) -> Explicit:
    """Attention that shows its map: softmax(q kᵀ / √d), edited by `edit(probs, site)`, then applied to v.

    An ablation is a lambda: `model.generate(prompt, attend=explicit(lambda probs, site: probs.roll(1, -1)))`.
    """
    return Explicit(edit)


def at_step(function: Any, step: int) -> Any:
    """The `Attend` or `MapFn` to use at sampling step `step` (0 is the noisiest).

    A function that wants to know the step has a method `at(step)` that returns the function for that step; any other
    is the same at every step. This is how time enters: the contract itself knows only places.
    """
    return function.at(step) if hasattr(function, "at") else function


@dataclass(frozen=True)
class Chain:
    """See `chain`."""

    map_fns: tuple[MapFn, ...]

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        for edit in self.map_fns:
            probs = edit(probs, site)
        return probs

    def at(self, step: int) -> "Chain":
        return Chain(tuple(at_step(edit, step) for edit in self.map_fns))


def chain(*edits: MapFn) -> Chain:
    """Map functions one after the other. A store before an edit keeps the map as it was, after it as it became:
    `explicit(chain(before, edit, after))`."""
    return Chain(edits)


QK = tuple[Tensor, Tensor]  # queries 1 h i d and keys 1 h j d of one picture: its map, before the softmax


SitePredicate = Callable[[Site, int], bool]  # whether a site, with so many queries, is to be read


HeadSelection = tuple[int, ...] | None  # that an edit reaches, all where None


def select_heads(heads: HeadSelection, edited: Tensor, own: Tensor) -> Tensor:
    """The edited in these heads, its own in the others: b h i · each."""
    if heads is None:
        return edited
    reached = torch.tensor([head in heads for head in range(own.shape[1])], device=own.device)
    return torch.where(reached[:, None, None], edited, own)


@dataclass(frozen=True)
class SiteFilter:
    """Which attention an edit reaches, for ablations: the sites of these places, strides and indices (see `Site`), and
    of each these heads; all where None."""

    places: tuple[str, ...] | None = None
    strides: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def includes(self, site: Site) -> bool:
        asked = (self.places, site.place), (self.strides, site.stride), (self.indices, site.index)
        return all(among is None or one in among for among, one in asked)

    def validate(self, heads: Mapping[Site, int]) -> None:
        """Raises ValueError for what a model with these sites, of so many heads, does not have."""
        if not isinstance(self, SiteFilter):
            raise ValueError(f"where is a Where, not {self!r}")
        most = max(heads.values())
        for name, given, have in (
            ("places", self.places, {site.place for site in heads}),
            ("strides", self.strides, {site.stride for site in heads}),
            ("indices", self.indices, {site.index for site in heads}),
            ("heads", self.heads, set(range(most))),
        ):
            if given is not None and (not isinstance(given, tuple) or not given or not have.issuperset(given)):
                raise ValueError(f"{name} must be some of {sorted(have)}, as a tuple, not {given!r}")


ALL_SITES = SiteFilter()
