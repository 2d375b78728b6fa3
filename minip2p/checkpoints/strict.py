"""Weights from safetensors files into modules: strictly, memory-mapped, and never unpickled."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minip2p.io.tensors import WEIGHT_DTYPES, printable, read_tensors

M = TypeVar("M", bound=nn.Module)


# The VAE attention of files from before 2023 has these names; the tensors are the same.
LEGACY_VAE_KEYS = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def load_module(build: Callable[[], M], path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> M:
    """Builds a module and gives it the tensors of a file: see `built` and `filled`."""
    return load_state(
        build_on_meta(build, path.parent / "config.json"), read_tensors(path), path, dtype=dtype, device=device
    )


def build_on_meta(build: Callable[[], M], config: Path) -> M:
    """A module without memory (on the meta device). Raises ValueError, which names the config, where it cannot be."""
    try:
        with torch.device("meta"):
            return build()
    except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{config}: cannot be built ({' '.join(str(error).split())})") from None


def load_state(
    module: M, tensors: Mapping[str, Tensor], path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> M:
    """The module with the tensors of a file.

    Every key and shape must match, both ways: ValueError names the first few that do not. A tensor that already has
    the dtype and device asked for stays memory-mapped.
    """
    tensors = {upgrade_key(name): tensor for name, tensor in tensors.items()}
    check_keys(path, module.state_dict(), tensors)
    placed = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    module.load_state_dict(placed, strict=True, assign=True)
    if dtype.itemsize == 2:  # channels last: there convolutions of 16-bit numbers are faster, those of float32 are not
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval().requires_grad_(False)


def upgrade_key(name: str) -> str:
    """The name that a tensor bears today."""
    parts = name.split(".")
    if "attentions" in parts:
        for former, current in LEGACY_VAE_KEYS:
            if former in parts:
                return name.replace(f".{former}.", f".{current}.")
    return name


def check_keys(path: Path, expected: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    """Raises ValueError, one line, where names or shapes differ."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{printable(name)} is not a tensor of this model" for name in found if name not in expected]
    problems += [
        f"{name} is of {str(tensor.dtype).removeprefix('torch.')}, which no weights are"
        for name, tensor in found.items()
        if name in expected and tensor.dtype not in WEIGHT_DTYPES
    ]
    problems += [
        f"{name} has shape {tuple(found[name].shape)} where the config says {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path}: {'; '.join(problems[:3])}{more}")
