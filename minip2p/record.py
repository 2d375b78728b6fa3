"""A record of a run: the (q, k) that edits of it read, so that the source need not run again; and the file of a run.

(q, k) is the attention map without loss, and far smaller: at SD 1.5's 64² self-attention 5 MB instead of 268. Queries
are kept for each step, and so are a self-attention's keys; a cross-attention's keys are the prompt's, kept once.

A record is laid out as a safetensors file from the beginning, in memory or memory-mapped: how large it will be is known
before the run begins, and anything that reads safetensors reads it.

Axes: h heads, i queries, j keys, d width of a head.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from minip2p.attention import Site
from minip2p.edit import QK, Wanted
from minip2p.mask import map_size
from minip2p.rule import EVERYWHERE, Where, check_pixels
from minip2p.unet import UNet

NAMES = MappingProxyType(
    {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
)  # of the dtypes, in the file
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # the tensors of a file: name -> dtype and shape


@dataclass(frozen=True)
class Keeps:
    """What a record keeps: (q, k) of the cross-attentions at the steps [start, stop) of `cross`, and of the
    self-attentions of at most `self_pixels` queries at those of `self_`; only of the sites that `where` has."""

    cross: tuple[int, int]
    self_: tuple[int, int]
    self_pixels: int
    where: Where = EVERYWHERE

    def __post_init__(self) -> None:
        check_pixels(self.self_pixels)

    def at(self, step: int) -> Wanted | None:
        cross, self_ = (start <= step < stop for start, stop in (self.cross, self.self_))
        if not cross and not self_:
            return None

        def kept(site: Site, queries: int) -> bool:
            return self.where.has(site) and (cross if site.cross else self_ and queries <= self.self_pixels)

        return kept


def named(site: Site, which: str, step: int) -> str:
    """The name of a tensor: `which` is q or k. The keys of a cross-attention are the same at all steps."""
    kind, when = ("cross", "" if which == "k" else f".{step}") if site.cross else ("self", f".{step}")
    return f"{site.place}.{site.index}.{kind}.{which}{when}"


def queries_of(unet: UNet, latent: tuple[int, int]) -> dict[Site, int]:
    """How many queries each site has for latents of so many rows and columns."""
    return {site: math.prod(map_size(latent, site.stride)) for site in unet.sites}


def layout(unet: UNet, latent: tuple[int, int], words: int, steps: int, keeps: Keeps, dtype: torch.dtype) -> Layout:
    """The tensors that a record will have."""
    found: Layout = {}
    queries, wanted = queries_of(unet, latent), [keeps.at(step) for step in range(steps)]
    for attention in unet.attentions:
        site, count = attention.site, queries[attention.site]
        for step, kept in enumerate(wanted):
            if kept is not None and kept(site, count):
                for which, n in (("q", count), ("k", words if site.cross else count)):
                    found[named(site, which, step)] = dtype, (1, attention.heads, n, attention.width)
    return found


def bytes_of(layout: Layout) -> int:
    """How many bytes the tensors take."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


class Block:
    """Tensors in one block of bytes, laid out as a safetensors file: in memory, or memory-mapped in a new file."""

    def __init__(self, layout: Layout, said: Mapping[str, str], file: Path | None = None):
        header: dict[str, object] = {"__metadata__": dict(said)}
        end = 0
        for name, (dtype, shape) in layout.items():
            if dtype not in NAMES:
                raise ValueError(f"{name} cannot be kept as {dtype}, only as a dtype of floating-point numbers")
            start, end = end, end + dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that numbers lie at multiples of their size
        text = len(text).to_bytes(8, "little") + text
        data = torch.empty(len(text) + end, dtype=torch.uint8) if file is None else mapped(file, len(text) + end)
        data[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        parts = data[len(text) :].split([dtype.itemsize * math.prod(shape) for dtype, shape in layout.values()])
        self.tensors = {
            name: part.view(dtype).view(shape)
            for part, (name, (dtype, shape)) in zip(parts, layout.items(), strict=True)
        }


def mapped(file: Path, count: int) -> Tensor:
    """So many bytes of a new file, memory-mapped. Raises OSError where the disk has no room for them."""
    with open(file, "wb") as f:
        if hasattr(os, "posix_fallocate"):  # a disk that is full says so now, and not by a signal later
            os.posix_fallocate(f.fileno(), 0, count)
        f.truncate(count)
    return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(count,)))


@dataclass(frozen=True, eq=False)
class Record:
    """(q, k) of a run by site and step. tensors: by name; queries: how many each site has."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    queries: Mapping[Site, int] = field(repr=False)

    def has(self, step: int, wanted: Wanted) -> bool:
        """Whether all that is wanted at a step was kept."""
        names = (named(site, which, step) for site, n in self.queries.items() if wanted(site, n) for which in "qk")
        return all(name in self.tensors for name in names)

    def at(self, step: int, wanted: Wanted, like: Tensor) -> dict[Site, QK]:
        """(q, k) of the wanted sites at a step, in the dtype and on the device of `like`. Copies: in a file numbers do
        not lie where kernels like them to, and with the place in memory the bits of a result would change."""

        def copied(site: Site, which: str) -> Tensor:
            return self.tensors[named(site, which, step)].to(like, copy=True)

        return {site: (copied(site, "q"), copied(site, "k")) for site, n in self.queries.items() if wanted(site, n)}

    def keep(self, step: int, found: Mapping[Site, QK]) -> None:
        """Takes what a step showed into its place."""
        for site, pair in found.items():
            for which, tensor in zip("qk", pair, strict=True):
                self.tensors[named(site, which, step)].copy_(tensor)
