"""Pairs of pictures with their instructions, as latents that are encoded once and kept on disk.

The pairs are rendered, so that both pictures are true and nothing else differs; or they come from a data set of pairs
such as `minip2p pairs` writes.

Axes: n pairs, b batch, r ways that a pair goes (before to after; perhaps back as well), k wordings, j tokens, c h w
latents, H W pixels of a picture.
"""

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from minip2p.io.images import fit_image
from minip2p.io.tensors import write_tensors
from minip2p.text.prompt import Prompt
from minip2p.tiny.batches import draw_indices
from minip2p.tiny.export import load_tokenizer
from minip2p.tiny.latents import CHUNK, MAX_SCENES, scenes_available
from minip2p.tiny.loop import half_precision, seeded_generator
from minip2p.tiny.processes import start_worker
from minip2p.tiny.render import render
from minip2p.tiny.scene_edits import TRAINED_KINDS, instruction_for, sample_edit
from minip2p.tiny.scenes import SIZE
from minip2p.tiny.sprites import Sprites
from minip2p.vae import VAE

WORDINGS = 4  # of each instruction
SHARE = 256  # pairs that a worker renders at a time
ENCODED = 32  # pictures that are encoded at a time
AHEAD = 2  # chunks that are rendered before they are needed
COLUMNS = ("input_image", "edit_prompt", "edited_image")  # the first three that diffusers' trainer takes by default

Chunk = dict[str, Tensor]


@dataclass(frozen=True)
class PairBatch:
    """source, target: b c h w, unscaled latents. token_ids: b j, of the instructions."""

    source: Tensor
    target: Tensor
    token_ids: Tensor


class PairSource(Protocol):
    """Where the training takes its pairs from."""

    def batch(self, step: int, age: int, size: int) -> PairBatch:
        """The batch of a step, always the same. age: the number of pairs since the start of the training."""


def render_pairs(seed: int, start: int, count: int, load_sprites: Callable[[], Sprites]) -> tuple[np.ndarray, Tensor]:
    """Pairs start … start + count − 1 of a seed, each of which depends on (seed, number) alone.

    Returns pictures n 2 H W 3 uint8, before and after, and token ids n 2 k j int16: of the instructions there and back.
    """
    sprites, tokenizer, pictures, token_ids = load_sprites(), load_tokenizer(), [], []
    for number in range(start, start + count):
        rng = np.random.default_rng((seed, number, 6))
        pair = sample_edit(TRAINED_KINDS[number % len(TRAINED_KINDS)], rng)
        pictures.append([render(scene, sprites).picture for scene in pair])
        texts = [[instruction_for(*scenes, rng) for _ in range(WORDINGS)] for scenes in (pair, pair[::-1])]
        token_ids.append([[Prompt.tokenize(text, tokenizer).ids for text in way] for way in texts])
    return np.array(pictures), torch.tensor(token_ids, dtype=torch.int16)


class PairLatents:
    """Latents of pairs, in chunks that are computed when they are first needed. A `PairSource`.

    folder: of the chunks. count: the number of pairs. make_chunk: its number -> "latents", n 2 c h w float16 of the
    pictures before and after, unscaled, and "token_ids", n r k j int16. device: where all of them are kept.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        count: int,
        make_chunk: Callable[[int], Chunk],
        device: torch.device | str = "cpu",
    ):
        self.folder, self.seed, self.count, self.make_chunk = folder, seed, count, make_chunk
        self.device = torch.device(device)
        self.chunks = 0
        self.rows: Chunk = {}

    def load_chunk(self, number: int) -> Chunk:
        """A chunk from the disk. Computes it if it is missing."""
        path = self.folder / f"{number:04d}.safetensors"
        if not path.exists():
            write_tensors(self.make_chunk(number), path)
        return load_file(path)

    def load(self, count: int) -> None:
        """Loads the chunks of the first `count` pairs."""
        while self.chunks * CHUNK < count:
            chunk = {name: tensor.to(self.device) for name, tensor in self.load_chunk(self.chunks).items()}
            self.rows = {name: torch.cat([self.rows[name], t]) if self.rows else t for name, t in chunk.items()}
            self.chunks += 1

    def batch(self, step: int, age: int, size: int) -> PairBatch:
        available = scenes_available(age, limit=self.count)
        self.load(available)
        rows, generator = draw_indices(self.seed, step, size, available), seeded_generator(self.seed, step, 9)
        _, ways, wordings, _ = self.rows["token_ids"].shape
        way = torch.randint(0, ways, (size,), generator=generator)
        wording = torch.randint(0, wordings, (size,), generator=generator)
        rows, way, wording = (index.to(self.device, non_blocking=True) for index in (rows, way, wording))
        latents = self.rows["latents"]
        return PairBatch(
            latents[rows, way].float(),
            latents[rows, 1 - way].float(),
            self.rows["token_ids"][rows, way, wording].long(),
        )


@dataclass(frozen=True)
class MixedPairs:
    """Half of each batch from either of two sources. A `PairSource`."""

    first: PairSource
    second: PairSource

    def batch(self, step: int, age: int, size: int) -> PairBatch:
        half = size // 2
        a, b = self.first.batch(step, age // 2, half), self.second.batch(step, age // 2, size - half)
        return PairBatch(
            torch.cat([a.source, b.source]), torch.cat([a.target, b.target]), torch.cat([a.token_ids, b.token_ids])
        )


@torch.no_grad()
def encode_pictures(vae: VAE, pictures: np.ndarray) -> Tensor:
    """n 2 H W 3 uint8 -> n 2 c h w float16, on the CPU: the means of the encoder's distributions, unscaled, which is
    what diffusers' trainer takes for the source (`.latent_dist.mode()`)."""
    device, latents = vae.decoder.conv_in.weight.device, []
    for part in torch.from_numpy(pictures).flatten(0, 1).split(ENCODED):
        with half_precision(device):
            x = part.to(device).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
            latents.append(vae.encode(x / 127.5 - 1)[0].half().cpu())
    return torch.cat(latents).unflatten(0, (-1, 2)).contiguous()


class RenderedChunks:
    """Renders and encodes chunks of pairs. A function for `PairLatents`.

    load_sprites: a function that a worker can unpickle. count: the number of pairs. workers: processes that render
    ahead; 0 renders here. Use it as a context: the workers end with it.
    """

    def __init__(
        self,
        vae: VAE,
        seed: int,
        load_sprites: Callable[[], Sprites],
        *,
        count: int = MAX_SCENES,
        workers: int = 0,
    ):
        self.vae, self.seed, self.load_sprites, self.count = vae, seed, load_sprites, count
        self.pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=start_worker) if workers else None
        self.requested: dict[int, list[Future[tuple[np.ndarray, Tensor]]]] = {}

    def __enter__(self) -> "RenderedChunks":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def rendered(self, number: int) -> Sequence[tuple[np.ndarray, Tensor]]:
        """The shares of a chunk. Workers go on with the next ones."""
        if self.pool is None:
            return [render_pairs(self.seed, start, SHARE, self.load_sprites) for start in share_starts(number)]
        for ahead in range(number, min(number + 1 + AHEAD, math.ceil(self.count / CHUNK))):
            if ahead not in self.requested:
                self.requested[ahead] = [
                    self.pool.submit(render_pairs, self.seed, start, SHARE, self.load_sprites)
                    for start in share_starts(ahead)
                ]
        return [future.result() for future in self.requested.pop(number)]

    def __call__(self, number: int) -> Chunk:
        shares = self.rendered(number)
        latents = [encode_pictures(self.vae, pictures) for pictures, _ in shares]
        return {"latents": torch.cat(latents), "token_ids": torch.cat([ids for _, ids in shares])}


def share_starts(chunk: int) -> range:
    """The numbers of the first pair of each share of a chunk."""
    return range(chunk * CHUNK, (chunk + 1) * CHUNK, SHARE)


def rendered_pairs(
    work: Path, chunks: RenderedChunks, vae_name: str, device: torch.device | str = "cpu"
) -> PairLatents:
    """Rendered pairs, kept in a folder in `work`. vae_name: tells the VAE from others."""
    return PairLatents(work / f"pairs-{chunks.seed}-{vae_name}", chunks.seed, chunks.count, chunks, device)


@dataclass(frozen=True)
class TableChunks:
    """Encodes chunks of a data set of pairs. A function for `PairLatents`. table: of pyarrow, with the COLUMNS."""

    vae: VAE
    table: Any
    folder: Path

    def __call__(self, number: int) -> Chunk:
        tokenizer, rows = load_tokenizer(), self.table.slice(number * CHUNK, CHUNK).to_pylist()
        for row in rows:
            if not isinstance(row["edit_prompt"], str) or not all(
                isinstance(row[name], Mapping) and row[name].get("bytes") for name in ("input_image", "edited_image")
            ):
                raise ValueError(f"{self.folder}: a pair has no {', '.join(COLUMNS)}: its pictures must be in the file")
        pictures = [
            [decode(row[name]["bytes"], self.folder) for name in ("input_image", "edited_image")] for row in rows
        ]
        token_ids = [Prompt.tokenize(row["edit_prompt"], tokenizer).ids for row in rows]
        return {
            "latents": encode_pictures(self.vae, np.array(pictures)),
            "token_ids": torch.tensor(token_ids, dtype=torch.int16)[:, None, None],
        }


def decode(content: bytes, folder: Path) -> np.ndarray:
    """A picture of a data set, SIZE SIZE 3 uint8, cropped if it is no square. Raises ValueError, one line."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            picture = fit_image(image.convert("RGB"), (SIZE, SIZE))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"{folder}: a picture in it cannot be read") from None
    return ((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def table_pairs(
    work: Path, data: Path, vae: VAE, vae_name: str, seed: int, device: torch.device | str = "cpu"
) -> PairLatents:
    """The pairs of a data set: the Parquet files in the folder `data`/data, kept encoded in a folder in `work`.

    Raises FileNotFoundError or ValueError, one line, for a folder without such files or without the COLUMNS.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((data / "data").glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{data}: has no data/*.parquet: give the folder of a data set of pairs")
    digest = hashlib.sha256(vae_name.encode())
    for file in files:
        digest.update(file.read_bytes())
    try:
        table = pa.concat_tables(pq.read_table(file, columns=list(COLUMNS)) for file in files)
    except (pa.ArrowException, OSError):
        raise ValueError(f"{data}: its files cannot be read as Parquet") from None
    if set(table.column_names) != set(COLUMNS) or not len(table):
        raise ValueError(f"{data}: has no pairs with the columns {', '.join(COLUMNS)}")
    folder = work / f"pairs-{digest.hexdigest()[:16]}"
    return PairLatents(folder, seed, len(table), TableChunks(vae, table, data), device)
