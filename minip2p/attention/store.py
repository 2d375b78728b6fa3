"""TODO: describe."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minip2p.attention.contract import QK, Attend, Site, SitePredicate, fused


@dataclass
class AttentionStore:
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

    def at(self, step: int) -> "StoreStep":
        return StoreStep(self, step)

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
class StoreStep:
    """A store at one step: what `Store.at` returns."""

    store: AttentionStore
    step: int

    @property
    def before(self) -> bool:
        return self.store.before

    def __call__(self, probs: Tensor, site: Site) -> Tensor:
        return self.store.keep(probs, site, self.step)


def record_qk(into: dict[Site, QK], wanted: SitePredicate, attend: Attend = fused) -> Attend:
    """An `Attend` that also keeps (q, k) of every wanted site: the map without loss, and far smaller than the map."""

    def record(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        if wanted(site, q.shape[-2]):
            into[site] = (q, k)
        return attend(q, k, v, site)

    return record


def check_attend(attend: Any) -> None:
    if isinstance(attend, AttentionStore) or not callable(attend):
        raise ValueError(
            "attend is a function of (q, k, v, site); a function of maps, as a Store is, goes into explicit()"
        )
