"""A record of a run: the (q, k) that edits of it read, so that the source need not run again; and the file of a run.

(q, k) is the attention map without loss, and far smaller: at SD 1.5's 64² self-attention 5 MB instead of 268. Queries
are kept for each step, and so are a self-attention's keys; a cross-attention's keys are the prompt's, kept once.

A record is laid out as a safetensors file from the beginning, in memory or memory-mapped: how large it will be is known
before the run begins, and anything that reads safetensors reads it.

Axes: h heads, i queries, j keys, d width of a head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minip2p.attention.contract import ALL_SITES, QK, Site, SiteFilter, SitePredicate
from minip2p.attention.heatmaps import map_size
from minip2p.io.tensors import Layout
from minip2p.unet import UNet
from minip2p.validation import check_max_queries


@dataclass(frozen=True)
class CachePolicy:
    """What a record keeps: (q, k) of the cross-attentions at the steps [start, stop) of `cross`, and of the
    self-attentions of at most `self_pixels` queries at those of `self_`; only of the sites that `where` has."""

    cross_steps: tuple[int, int]
    self_steps: tuple[int, int]
    self_max_queries: int
    sites: SiteFilter = ALL_SITES

    def __post_init__(self) -> None:
        check_max_queries(self.self_max_queries)

    def at(self, step: int) -> SitePredicate | None:
        cross, self_ = (start <= step < stop for start, stop in (self.cross_steps, self.self_steps))
        if not cross and not self_:
            return None

        def kept(site: Site, queries: int) -> bool:
            return self.sites.includes(site) and (cross if site.cross else self_ and queries <= self.self_max_queries)

        return kept


def tensor_name(site: Site, which: str, step: int) -> str:
    """The name of a tensor: `which` is q or k. The keys of a cross-attention are the same at all steps."""
    kind, when = ("cross", "" if which == "k" else f".{step}") if site.cross else ("self", f".{step}")
    return f"{site.place}.{site.index}.{kind}.{which}{when}"


def queries_per_site(unet: UNet, latent: tuple[int, int]) -> dict[Site, int]:
    """How many queries each site has for latents of so many rows and columns."""
    return {site: math.prod(map_size(latent, site.stride)) for site in unet.sites}


def cache_layout(
    unet: UNet, latent: tuple[int, int], words: int, steps: int, keeps: CachePolicy, dtype: torch.dtype
) -> Layout:
    """The tensors that a record will have."""
    found: Layout = {}
    queries, wanted = queries_per_site(unet, latent), [keeps.at(step) for step in range(steps)]
    for attention in unet.attentions:
        site, count = attention.site, queries[attention.site]
        for step, kept in enumerate(wanted):
            if kept is not None and kept(site, count):
                for which, n in (("q", count), ("k", words if site.cross else count)):
                    found[tensor_name(site, which, step)] = dtype, (1, attention.heads, n, attention.width)
    return found


@dataclass(frozen=True, eq=False)
class QKCache:
    """(q, k) of a run by site and step. tensors: by name; queries: how many each site has."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    queries: Mapping[Site, int] = field(repr=False)

    def covers(self, step: int, wanted: SitePredicate) -> bool:
        """Whether all that is wanted at a step was kept."""
        names = (
            tensor_name(site, which, step) for site, n in self.queries.items() if wanted(site, n) for which in "qk"
        )
        return all(name in self.tensors for name in names)

    def get(self, step: int, wanted: SitePredicate, like: Tensor) -> dict[Site, QK]:
        """(q, k) of the wanted sites at a step, in the dtype and on the device of `like`. Copies: in a file numbers do
        not lie where kernels like them to, and with the place in memory the bits of a result would change."""

        def copied(site: Site, which: str) -> Tensor:
            return self.tensors[tensor_name(site, which, step)].to(like, copy=True)

        return {site: (copied(site, "q"), copied(site, "k")) for site, n in self.queries.items() if wanted(site, n)}

    def put(self, step: int, found: Mapping[Site, QK]) -> None:
        """Takes what a step showed into its place."""
        for site, pair in found.items():
            for which, tensor in zip("qk", pair, strict=True):
                self.tensors[tensor_name(site, which, step)].copy_(tensor)
