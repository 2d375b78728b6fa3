"""TODO: describe."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minip2p.io.files import atomic_write

# What weights may be of; those of 8 bits are read into more.
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped: a byte is read when it is first used.

    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is {path.parent.parent} a diffusers model folder?")
    try:
        with safe_open(path, "pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); download or copy it again") from None


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A kill leaves the old file or the new one, never half of one."""
    with atomic_write(path) as partial:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, partial, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file, which `read_tensors` could read, says of itself beside its tensors."""
    with safe_open(path, "pt") as f:
        return dict(f.metadata() or {})


def fingerprint(modules: Iterable[nn.Module], said: str = "") -> str:
    """Tells weights apart: from each one's name, dtype, shape and some eight of its numbers, spread evenly over it, and
    from what is said beside."""
    seen = hashlib.sha256(said.encode())
    for module in modules:
        for name, p in module.named_parameters():
            some = p.detach().flatten()[:: max(1, p.numel() // 8)].tolist()
            seen.update(f"{name} {p.dtype} {tuple(p.shape)} {some}".encode())
    return seen.hexdigest()


def printable(name: str) -> str:
    """A name from a file, which may have anything in it, as a part of one line."""
    short = name if len(name) <= 200 else name[:200] + "…"
    return short if short.isprintable() else repr(short)


DTYPE_NAMES = MappingProxyType(
    {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
)  # of the dtypes, in the file


Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # the tensors of a file: name -> dtype and shape


def layout_bytes(layout: Layout) -> int:
    """How many bytes the tensors take."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


class SafetensorsBuffer:
    """Tensors in one block of bytes, laid out as a safetensors file: in memory, or memory-mapped in a new file."""

    def __init__(self, layout: Layout, said: Mapping[str, str], file: Path | None = None):
        header: dict[str, object] = {"__metadata__": dict(said)}
        end = 0
        for name, (dtype, shape) in layout.items():
            if dtype not in DTYPE_NAMES:
                raise ValueError(f"{name} cannot be kept as {dtype}, only as a dtype of floating-point numbers")
            start, end = end, end + dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that numbers lie at multiples of their size
        text = len(text).to_bytes(8, "little") + text
        data = torch.empty(len(text) + end, dtype=torch.uint8) if file is None else map_file(file, len(text) + end)
        data[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        parts = data[len(text) :].split([dtype.itemsize * math.prod(shape) for dtype, shape in layout.values()])
        self.tensors = {
            name: part.view(dtype).view(shape)
            for part, (name, (dtype, shape)) in zip(parts, layout.items(), strict=True)
        }


def map_file(file: Path, count: int) -> Tensor:
    """So many bytes of a new file, memory-mapped. Raises OSError where the disk has no room for them."""
    with open(file, "wb") as f:
        if hasattr(os, "posix_fallocate"):  # a disk that is full says so now, and not by a signal later
            os.posix_fallocate(f.fileno(), 0, count)
        f.truncate(count)
    return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(count,)))
