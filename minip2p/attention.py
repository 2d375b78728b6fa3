"""Attention as an argument. Every attention of the UNet goes through one door, `attend(q, k, v, site) -> out`.

Axes, here and everywhere: b batch, h heads, i queries (latent pixels), j keys (words or pixels), d width of a head.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
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

    edit: MapFn

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        return self.edit(attention_map(q, k), site) @ v

    def at(self, step: int) -> "Explicit":
        return Explicit(at_step(self.edit, step))


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

    edits: tuple[MapFn, ...]

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        for edit in self.edits:
            probs = edit(probs, site)
        return probs

    def at(self, step: int) -> "Chain":
        return Chain(tuple(at_step(edit, step) for edit in self.edits))


def chain(*edits: MapFn) -> Chain:
    """Map functions one after the other. A store before an edit keeps the map as it was, after it as it became:
    `explicit(chain(before, edit, after))`."""
    return Chain(edits)


@dataclass
class Store:
    """A `MapFn` that changes nothing and keeps what it was asked for, addressed by site: `store.maps[site]`.

    sites: which sites to keep (a predicate; all by default). steps: which sampling steps (all by default).
    each: False keeps the mean over the steps, b h i j; True keeps every step by its number, t b h i j.
    before: in an edit, keep the target's own maps, before the edit; by default the maps that the edit made.
    One store serves one run: a step that it has already seen (a run that is replayed) is not kept again.
    Kept maps are detached copies on the CPU: a store never holds a graph or the device's memory.
    """

    sites: Callable[[Site], bool] = lambda site: True
    steps: Container[int] | None = None
    each: bool = False
    before: bool = False
    _kept: dict[Site, dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _seen: dict[Site, set[int]] = field(default_factory=dict, init=False, repr=False)
    _calls: dict[Site, int] = field(default_factory=dict, init=False, repr=False)

    def keep(self, probs: Tensor, site: Site, step: int) -> Tensor:
        if not self.sites(site) or (self.steps is not None and step not in self.steps):
            return probs
        seen = self._seen.setdefault(site, set())
        if step not in seen:
            seen.add(step)
            kept, mine = self._kept.setdefault(site, {}), probs.detach().float().cpu()
            if self.each:
                kept[step] = mine.clone()
            else:
                kept[0] = kept[0] + mine if kept else mine.clone()
        return probs

    def at(self, step: int) -> "StoreAt":
        return StoreAt(self, step)

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        """Outside of a run, where nobody tells the step: every call is a step of its own."""
        step = self._calls[site] = self._calls.get(site, -1) + 1
        return self.keep(probs, site, step)

    @property
    def maps(self) -> dict[Site, Tensor]:
        """What was kept: site -> b h i j (the mean over the kept steps), or t b h i j where `each` is set."""
        if self.each:
            return {site: torch.stack([kept[step] for step in sorted(kept)]) for site, kept in self._kept.items()}
        return {site: kept[0] / len(self._seen[site]) for site, kept in self._kept.items()}


@dataclass(frozen=True)
class StoreAt:
    """A store at one step: what `Store.at` returns."""

    store: Store
    step: int

    @property
    def before(self) -> bool:
        return self.store.before

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        return self.store.keep(probs, site, self.step)
