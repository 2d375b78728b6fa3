"""Recording attention: `AttentionStore` keeps maps, `record_qk` keeps the queries and keys that determine them.

Axes: b batch, h heads, i queries, j keys, d width of a head, t steps.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import QK, Attend, Site, SitePredicate, fused


@dataclass
class AttentionStore:
    """A `MapFn` that changes nothing and keeps the maps that it sees, by site: `store.maps[site]`.

    sites: a predicate that selects the sites to keep; all by default.
    steps: the sampling steps to keep, counted from 0; all by default.
    each_step: False keeps the mean over the steps, b h i j; True keeps the map of every step, t b h i j.
    before: in an edit, keep the target's maps before the edit changes them; by default, after it.

    Use one store for one run. A step that the store has seen already (when the run is replayed) is not kept twice.
    The maps are detached float32 copies on the CPU: a store holds no graph and no memory of the device.
    """

    sites: Callable[[Site], bool] = lambda site: True
    steps: Container[int] | None = None
    each_step: bool = False
    before: bool = False
    # Site -> step -> map. If not each_step, the sum over the steps is under key 0.
    _maps: dict[Site, dict[int, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _stored_steps: dict[Site, set[int]] = field(default_factory=dict, init=False, repr=False)
    _call_counts: dict[Site, int] = field(default_factory=dict, init=False, repr=False)

    def add(self, probs: Tensor, site: Site, step: int) -> Tensor:
        """Keeps the map of a site at a step, if it is to be kept. Returns `probs` itself."""
        if not self.sites(site) or (self.steps is not None and step not in self.steps):
            return probs
        stored_steps = self._stored_steps.setdefault(site, set())
        if step not in stored_steps:
            stored_steps.add(step)
            maps = self._maps.setdefault(site, {})
            new = probs.detach().float().cpu()
            if self.each_step:
                maps[step] = new.clone()
            else:
                maps[0] = maps[0] + new if maps else new.clone()
        return probs

    def at(self, step: int) -> "StoreStep":
        """The `MapFn` that keeps maps as those of sampling step `step`."""
        return StoreStep(self, step)

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        """Keeps a map outside of a sampling run: every call at a site counts as one more step."""
        step = self._call_counts[site] = self._call_counts.get(site, -1) + 1
        return self.add(probs, site, step)

    @property
    def maps(self) -> dict[Site, Tensor]:
        """Site -> b h i j, the mean over the kept steps; or t b h i j in order of the steps, if `each_step`."""
        if self.each_step:
            return {site: torch.stack([maps[step] for step in sorted(maps)]) for site, maps in self._maps.items()}
        return {site: maps[0] / len(self._stored_steps[site]) for site, maps in self._maps.items()}


@dataclass(frozen=True)
class StoreStep:
    """A store at one sampling step, as `AttentionStore.at` returns it."""

    store: AttentionStore
    step: int

    @property
    def before(self) -> bool:
        """See `AttentionStore`."""
        return self.store.before

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        return self.store.add(probs, site, self.step)


def record_qk(into: dict[Site, QK], reads: SitePredicate, attend: Attend = fused) -> Attend:
    """An `Attend` that also writes (q, k) of the sites that `reads` selects to `into`, as they are, not copied.

    (q, k) determine the map softmax(q kᵀ / √d) without loss, and take far less memory than the map.
    """

    def record(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        if reads(site, q.shape[-2]):
            into[site] = (q, k)
        return attend(q, k, v, site)

    return record


def check_attend(attend: Any) -> None:
    """Raises ValueError if `attend` is not callable, or is an AttentionStore, which is a function of maps."""
    if isinstance(attend, AttentionStore) or not callable(attend):
        raise ValueError(
            "attend is a function of (q, k, v, site); wrap a function of maps, such as an AttentionStore, in explicit()"
        )
