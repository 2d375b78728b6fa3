"""Tensors in safetensors files: reading, writing, and one preallocated file or block of memory to fill in place.

Also how tensors get from memory to a device.
"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minip2p.io.contents import broken_safetensors
from minip2p.io.files import atomic_write

# The dtypes that weights may have in a file. Loading converts the 8-bit ones to a wider dtype.
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)

# The dtypes that a SafetensorsBuffer can hold, and their names in the file's header.
DTYPE_NAMES = MappingProxyType(
    {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
)

CONVERTED_AT_ONCE = 2**27  # bytes of a file that are mapped at a time where its tensors are converted

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # the tensors of a file: name -> dtype and shape


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None, *, copy: bool = False) -> Tensor:
    """A tensor on a device, which the CPU does not wait for where it only sends: for what a step reads.

    dtype: None is the tensor's own. copy: never the tensor itself. Such a copy is asynchronous also from memory that is
    not pinned: CUDA has read it when the call returns. Apple's GPU would read it later, when it may be freed.
    """
    is_sent = tensor.device.type == "cpu" and device.type != "mps"
    return tensor.to(device, dtype or tensor.dtype, non_blocking=is_sent, copy=copy)


def read_tensors(
    path: Path, dtype: torch.dtype | None = None, wanted: Container[str] | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped: a byte is read when it is first used.

    dtype: weights of another dtype are read and converted now, and the file is mapped anew after every
    `CONVERTED_AT_ONCE` bytes of them. So what has been converted is not held any longer. None converts nothing.
    wanted: the names of the tensors to read; None is all.
    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is {path.parent.parent} a diffusers model folder?")
    try:
        tensors: dict[str, Tensor] = {}
        with safe_open(path, "pt") as f:
            names = deque(name for name in f.keys() if wanted is None or name in wanted)  # noqa: SIM118, not a dict
        while names:
            converted = 0  # bytes of this mapping, which ends with the last tensor that is a part of it
            with safe_open(path, "pt") as f:
                while names and converted < CONVERTED_AT_ONCE:
                    name = names.popleft()
                    tensor = f.get_tensor(name)
                    if dtype is not None and tensor.dtype != dtype and tensor.dtype in WEIGHT_DTYPES:
                        converted += tensor.nbytes
                        tensor = tensor.to(dtype)
                    tensors[name] = tensor
        return tensors
    except (SafetensorError, OSError) as error:
        raise broken_safetensors(path, error) from None


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically."""
    with atomic_write(path) as partial:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, partial, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file that `read_tensors` can read."""
    with safe_open(path, "pt") as f:
        return dict(f.metadata() or {})


def fingerprint(modules: Iterable[nn.Module], extra: str = "") -> str:
    """A SHA-256 hex digest that tells weights apart without reading all of them.

    It covers the name, dtype and shape of each parameter and about eight of its values, evenly spaced, and `extra`.
    """
    digest = hashlib.sha256(extra.encode())
    for module in modules:
        for name, p in module.named_parameters():
            sample = p.detach().flatten()[:: max(1, p.numel() // 8)].cpu().tolist()
            digest.update(f"{name} {p.dtype} {tuple(p.shape)} {sample}".encode())
    return digest.hexdigest()


def printable(name: str) -> str:
    """A name from a file, which may contain anything, made safe to print in a one-line message."""
    short = name if len(name) <= 200 else name[:200] + "…"
    return short if short.isprintable() else repr(short)


def layout_bytes(layout: Layout) -> int:
    """The size of the tensors of a layout in bytes, without the file's header."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


class SafetensorsBuffer:
    """Uninitialized tensors in one block of bytes that is laid out as a safetensors file.

    `tensors` (name -> tensor) are views into the block: write to them, and the block is the finished file.
    layout: names, dtypes and shapes. metadata: the text metadata of the file.
    file: the new file that backs the block, memory-mapped; None keeps the block in memory.
    Raises ValueError for a dtype that is not in DTYPE_NAMES, OSError if the disk has no room for the file.
    """

    def __init__(self, layout: Layout, metadata: Mapping[str, str], file: Path | None = None):
        header = safetensors_header(layout, metadata)
        size = len(header) + layout_bytes(layout)
        block = torch.empty(size, dtype=torch.uint8) if file is None else map_file(file, size)
        block[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        chunks = block[len(header) :].split([layout_bytes({name: entry}) for name, entry in layout.items()])
        self.tensors = {
            name: chunk.view(dtype).view(shape)
            for chunk, (name, (dtype, shape)) in zip(chunks, layout.items(), strict=True)
        }


def safetensors_header(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file, up to its first tensor: the length as 8 bytes, then JSON."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in layout.items():
        if dtype not in DTYPE_NAMES:
            raise ValueError(f"{name} cannot be kept as {dtype}, only as a dtype of floating-point numbers")
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text


def map_file(file: Path, size: int) -> Tensor:
    """A new file of `size` bytes, memory-mapped as uint8. Raises OSError if the disk has no room for it."""
    with open(file, "wb") as f:
        if hasattr(os, "posix_fallocate"):  # otherwise a full disk kills the process with a signal at a later write
            os.posix_fallocate(f.fileno(), 0, size)
        f.truncate(size)
    return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,)))
