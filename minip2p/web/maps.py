"""The attention maps of a run, all at once and small: 8 bits a number, the tokens of a word summed.

Axes: t steps, h heads, i queries (pixels of a map), j tokens of the prompt, n entries (`words.Token`).
"""

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minip2p.attention.contract import Attend, Site, attention_map
from minip2p.attention.heatmaps import map_size
from minip2p.sampling.progress import Progress
from minip2p.sampling.trajectory import Trajectory
from minip2p.web.words import Token, tokens_of

SELF_QUERIES = 1024  # self-attention of more queries is left out
SELF_SHARE = 0.5  # of the bytes that self-attention may take


@dataclass
class Block:
    """The maps of one site: cross-attention as t h i n, self-attention as i i, the mean over heads and steps.

    size: rows and columns of the map. steps, heads: of the block, 1 where it is a mean.
    """

    site: Site
    size: tuple[int, int]
    shape: tuple[int, ...]
    model_heads: int
    steps: int
    sums: Tensor | None = field(default=None, init=False)  # of the step, or of all steps where the block is their mean
    content: list[np.ndarray] = field(default_factory=list, init=False)

    @property
    def total(self) -> int:
        return prod(self.shape)

    @property
    def mean_heads(self) -> bool:
        return self.shape[1] < self.model_heads

    @property
    def mean_steps(self) -> bool:
        return self.shape[0] < self.steps

    def reduce(self) -> bool:
        """Makes the block smaller, by the mean over the heads or else over the steps. False if it cannot be smaller."""
        t, h, *rest = self.shape
        if h > 1:
            self.shape = (t, 1, *rest)
        elif t > 1:
            self.shape = (1, 1, *rest)
        else:
            return False
        return True

    def add(self, maps: Tensor) -> None:
        """Adds the maps of a step: h i n of cross-attention, h i i of self-attention."""
        if not self.site.cross:
            mean = maps.mean(0) / self.steps
            self.sums = mean if self.sums is None else self.sums + mean
            return
        maps = maps.mean(0, keepdim=True) if self.mean_heads else maps
        if not self.mean_steps:
            self.content.append(quantized(maps))
        else:
            self.sums = maps / self.steps if self.sums is None else self.sums + maps / self.steps

    def tobytes(self) -> bytes:
        content = self.content if self.sums is None else [quantized(self.sums)]
        return b"".join(array.tobytes() for array in content)

    def header(self, offset: int) -> dict[str, Any]:
        site, (rows, columns) = self.site, self.size
        common = {"place": site.place, "index": site.index, "stride": site.stride, "rows": rows, "columns": columns}
        if not site.cross:
            return {**common, "offset": offset}
        means = {"mean_heads": self.mean_heads, "mean_steps": self.mean_steps}
        return {**common, "heads": self.shape[1], "steps": self.shape[0], **means, "offset": offset}


def quantized(shares: Tensor) -> np.ndarray:
    """Shares in [0, 1] as bytes, round(255 √p): small shares are the ones that differ visibly."""
    return (shares.clamp(0, 1).sqrt() * 255).round().to(torch.uint8).cpu().numpy()


def plan_blocks(run: Trajectory, tokens: int, budget: int) -> list[Block]:
    """The blocks of a run's maps, of at most `budget` bytes in all.

    Self-attention gets up to half of it, the coarser maps first. Of cross-attention the largest block becomes the mean
    over its heads, and then over the steps, until all fit.
    """
    heads, latent = run.components.unet.heads, run.latent_size
    sizes = {site: map_size(latent, site.stride) for site in heads}
    self_blocks, left = [], int(budget * SELF_SHARE)
    for site in sorted((site for site in heads if not site.cross), key=lambda site: prod(sizes[site])):
        queries = prod(sizes[site])
        if queries <= SELF_QUERIES and queries**2 <= left:
            self_blocks.append(Block(site, sizes[site], (queries, queries), heads[site], run.steps))
            left -= queries**2
    cross = [
        Block(site, sizes[site], (run.steps, heads[site], prod(sizes[site]), tokens), heads[site], run.steps)
        for site in heads
        if site.cross
    ]
    left = budget - total_bytes(self_blocks)
    while total_bytes(cross) > left:
        for block in sorted(cross, key=lambda block: -block.total):
            if block.reduce():
                break
        else:
            cross.remove(max(cross, key=lambda block: block.total))
    return [*cross, *sorted(self_blocks, key=lambda block: list(heads).index(block.site))]


def total_bytes(blocks: Iterable[Block]) -> int:
    return sum(block.total for block in blocks)


def collect_maps(run: Trajectory, budget: int, progress: Progress = iter) -> tuple[list[Token], list[Block]]:
    """Goes through a run once more, conditional rows only, and forms its attention maps, as `Trajectory.maps` does.

    They are those of the run's own prompt, without an edit. budget: bytes.
    """
    prompt = run.components.text.prompt(run.prompt)
    tokens = tokens_of(prompt)
    indicators = torch.zeros(len(prompt.ids), len(tokens))
    for n, token in enumerate(tokens):
        indicators[list(token.positions), n] = 1
    blocks = plan_blocks(run, len(tokens), budget)
    by_site = {block.site: block for block in blocks}

    def recording(attend: Attend) -> Attend:
        def record(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
            if site in by_site:
                maps = attention_map(q, k)[0].float()
                by_site[site].add(maps @ indicators.to(maps) if site.cross else maps)
            return attend(q, k, v, site)

        return record

    run.replay(recording, progress=progress)
    return tokens, blocks


def pack_maps(tokens: Sequence[Token], blocks: Sequence[Block]) -> bytes:
    """The maps as the page reads them: 4 bytes (little-endian) n, n bytes of JSON, and the blocks. A number is
    round(255 √p). Offsets are bytes after the JSON."""
    headers: dict[str, list[dict[str, Any]]] = {"cross": [], "self": []}
    offset = 0
    for block in blocks:
        headers["cross" if block.site.cross else "self"].append(block.header(offset))
        offset += block.total
    text = json.dumps({"tokens": [token.json for token in tokens], **headers}).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(block.tobytes() for block in blocks)])
