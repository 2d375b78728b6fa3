"""A cache of the (q, k) of a run, so that edits of it need not run the source again.

(q, k) determines the attention map exactly and is far smaller: 5 MB instead of 268 MB for SD 1.5's self-attention at
64². Queries are kept for every step, and so are the keys of self-attention; the keys of cross-attention depend on the
prompt alone and are kept once. Where edits correct their predictions by the source's, the corrections are kept as well.

Axes: c y x latents, h heads, i queries, j keys, d width of a head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minip2p.attention.contract import ALL_SITES, QK, Site, SiteFilter, SitePredicate
from minip2p.attention.heatmaps import map_size
from minip2p.io.tensors import Layout, to_device
from minip2p.unet import UNet
from minip2p.validation import check_max_queries


@dataclass(frozen=True)
class CachePolicy:
    """Which (q, k) a cache keeps.

    cross_steps, self_steps: the steps [start, stop) of cross- and self-attention. self_max_queries: self-attention of
    at most so many queries. sites: only these sites. corrected_steps: the steps [start, stop) whose corrections are
    kept. Raises ValueError for a self_max_queries that is no such number.
    """

    cross_steps: tuple[int, int]
    self_steps: tuple[int, int]
    self_max_queries: int
    sites: SiteFilter = ALL_SITES
    corrected_steps: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        check_max_queries(self.self_max_queries)

    def at(self, step: int) -> SitePredicate | None:
        """Which sites are kept at a step; None for no site."""
        keeps_cross = self.cross_steps[0] <= step < self.cross_steps[1]
        keeps_self = self.self_steps[0] <= step < self.self_steps[1]
        if not keeps_cross and not keeps_self:
            return None

        def keeps(site: Site, queries: int) -> bool:
            kind = keeps_cross if site.cross else keeps_self and queries <= self.self_max_queries
            return kind and self.sites.includes(site)

        return keeps


def tensor_name(site: Site, which: str, step: int) -> str:
    """The name of a tensor in a run file. which: "q" or "k". A cross-attention's keys have no step."""
    if not site.cross:
        return f"{site.place}.{site.index}.self.{which}.{step}"
    return f"{site.place}.{site.index}.cross.k" if which == "k" else f"{site.place}.{site.index}.cross.q.{step}"


def correction_name(step: int) -> str:
    """The name of a step's correction in a run file."""
    return f"correction.{step}"


def queries_per_site(unet: UNet, latent: tuple[int, int]) -> dict[Site, int]:
    """How many queries each attention site has, for latents of so many rows and columns."""
    return {site: math.prod(map_size(latent, site.stride)) for site in unet.sites}


def cache_layout(
    unet: UNet, latent: tuple[int, int], words: int, steps: int, *, policy: CachePolicy, dtype: torch.dtype
) -> Layout:
    """The names, dtypes and shapes of the tensors that a cache will contain, before the run."""
    layout: Layout = {}
    queries, predicates = queries_per_site(unet, latent), [policy.at(step) for step in range(steps)]
    for attention in unet.attentions:
        site, count = attention.site, queries[attention.site]
        for step, keeps in enumerate(predicates):
            if keeps is not None and keeps(site, count):
                for which, rows in (("q", count), ("k", words if site.cross else count)):
                    layout[tensor_name(site, which, step)] = dtype, (1, attention.heads, rows, attention.width)
    for step in range(*policy.corrected_steps):
        layout[correction_name(step)] = torch.float32, (1, unet.config.out_channels, *latent)
    return layout


@dataclass(frozen=True, eq=False)
class QKCache:
    """(q, k) of a run by site and step, and its corrections. tensors: by `tensor_name` and `correction_name`. queries:
    how many each site has."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    queries: Mapping[Site, int] = field(repr=False)

    def covers(self, step: int, wanted: SitePredicate) -> bool:
        """Whether the cache has all wanted sites at a step."""
        sites = [site for site, count in self.queries.items() if wanted(site, count)]
        return all(tensor_name(site, which, step) in self.tensors for site in sites for which in "qk")

    def get(self, step: int, wanted: SitePredicate, like: Tensor) -> dict[Site, QK]:
        """(q, k) of the wanted sites at a step, in the dtype and on the device of `like`.

        The tensors are copies. In a memory-mapped file they are not aligned as kernels prefer, and alignment changes
        the bits of a result.
        """

        def read(site: Site, which: str) -> Tensor:
            return to_device(self.tensors[tensor_name(site, which, step)], like.device, like.dtype, copy=True)

        sites = [site for site, count in self.queries.items() if wanted(site, count)]
        return {site: (read(site, "q"), read(site, "k")) for site in sites}

    def correction(self, step: int) -> Tensor | None:
        """The correction of a step, 1 c y x; None where it was not kept."""
        return self.tensors.get(correction_name(step))

    def put(self, step: int, pairs: Mapping[Site, QK], correction: Tensor | None = None) -> None:
        """Copies the (q, k) and the correction of a step into the cache, whose tensors exist already."""
        for site, pair in pairs.items():
            for which, tensor in zip("qk", pair, strict=True):
                self.tensors[tensor_name(site, which, step)].copy_(tensor)
        if correction is not None:
            self.tensors[correction_name(step)].copy_(correction)
