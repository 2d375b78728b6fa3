"""Loads safetensors weights into modules: strictly, memory-mapped, and without unpickling."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minip2p.io.tensors import WEIGHT_DTYPES, printable, read_tensors

M = TypeVar("M", bound=nn.Module)

# Old and new names of the VAE's attention layers. Files from before 2023 have the old names; the tensors are the same.
LEGACY_VAE_KEYS = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def load_module(build: Callable[[], M], path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> M:
    """Builds a module and loads the tensors of a safetensors file into it.

    Raises FileNotFoundError, or ValueError with one line, as `build_on_meta`, `read_tensors` and `load_state` do.
    """
    module = build_on_meta(build, path.parent / "config.json")
    return load_state(module, read_tensors(path, dtype), path, dtype=dtype, device=device)


def build_on_meta(build: Callable[[], M], config: Path) -> M:
    """Builds a module on the meta device, where its tensors take no memory.

    Raises ValueError, which names the config file, if the configuration does not describe a module that can be built.
    """
    try:
        with torch.device("meta"):
            return build()
    except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{config}: cannot be built ({' '.join(str(error).split())})") from None


def load_state(
    module: M, tensors: dict[str, Tensor], path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> M:
    """Puts the tensors of the file `path` into a module, and returns the module in evaluation mode, without gradients.

    tensors: emptied as the module takes them, so that none is held twice. One that already has the requested dtype and
    device stays memory-mapped. Raises ValueError, which names the first few problems, unless every key and shape
    matches in both directions.
    """
    check_keys(path, module.state_dict(), {upgrade_key(name): tensor for name, tensor in tensors.items()})
    placed: dict[str, Tensor] = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        # Channels-last convolutions are faster in 16 bits, but not in float32.
        is_reordered = dtype.itemsize == 2 and tensor.ndim == 4
        memory_format = torch.channels_last if is_reordered else torch.preserve_format
        placed[upgrade_key(name)] = tensor.to(device=device, dtype=dtype, memory_format=memory_format)
    module.load_state_dict(placed, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def upgrade_key(name: str) -> str:
    """Returns the current name of a tensor that may have a name from `LEGACY_VAE_KEYS`."""
    segments = name.split(".")
    if "attentions" in segments:
        for legacy, current in LEGACY_VAE_KEYS:
            if legacy in segments:
                return name.replace(f".{legacy}.", f".{current}.")
    return name


def check_keys(path: Path, expected: Mapping[str, Any], actual: Mapping[str, Tensor]) -> None:
    """Raises ValueError, with one line, if the names, the shapes or the dtypes of a file's tensors are not as expected.

    expected: the module's state dict. actual: the tensors of the file `path`.
    """
    problems = [f"{name} is missing" for name in expected if name not in actual]
    problems += [f"{printable(name)} is not a tensor of this model" for name in actual if name not in expected]
    problems += [
        f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}, which is not a dtype of weights"
        for name, tensor in actual.items()
        if name in expected and tensor.dtype not in WEIGHT_DTYPES
    ]
    problems += [
        f"{name} has shape {tuple(actual[name].shape)} where the config says {tuple(expected[name].shape)}"
        for name in expected
        if name in actual and actual[name].shape != expected[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path}: {'; '.join(problems[:3])}{more}")
