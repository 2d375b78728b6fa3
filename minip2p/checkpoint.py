"""Weights from safetensors files into modules: strictly, memory-mapped, and never unpickled."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minip2p.files import whole

M = TypeVar("M", bound=nn.Module)

# The VAE attention of files from before 2023 has these names; the tensors are the same.
FORMER_NAMES = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


# What weights may be of; those of 8 bits are read into more.
KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Origin:
    """Where a model is from. files: of each network's weights, by its folder's name. said: what its pictures say of it
    ("Model", "VAE", "LoRA")."""

    files: Mapping[str, Path] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)

    def check_kept(self, file: Path) -> None:
        """Raises ValueError where a file that is to be written is one that the weights are in."""
        for own in self.files.values():
            for one in own.parent.glob("*.safetensors") if own.suffix == ".json" else [own]:  # an index names several
                if file.exists() and one.exists() and file.samefile(one):
                    raise ValueError(f"{file}: the model's weights are in it: choose another name")


def shipped(name: str) -> Path:
    """The folder of weights that ship with minip2p: inside of the package, in a checkout by a link to `weights`; beside
    it where the system has no links."""
    package = Path(__file__).parent
    return next((p for p in (package / "weights" / name, package.parent / "weights" / name) if p.is_dir()),
                package.parent / "weights" / name)  # fmt: skip


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


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A kill leaves the old file or the new one, never half of one."""
    with whole(path) as partial:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, partial, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file, which `read_tensors` could read, says of itself beside its tensors."""
    with safe_open(path, "pt") as f:
        return dict(f.metadata() or {})


def load_module(build: Callable[[], M], path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> M:
    """Builds a module and gives it the tensors of a file: see `built` and `filled`."""
    return filled(built(build, path.parent / "config.json"), read_tensors(path), path, dtype=dtype, device=device)


def built(build: Callable[[], M], config: Path) -> M:
    """A module without memory (on the meta device). Raises ValueError, which names the config, where it cannot be."""
    try:
        with torch.device("meta"):
            return build()
    except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{config}: cannot be built ({' '.join(str(error).split())})") from None


def filled(
    module: M, tensors: Mapping[str, Tensor], path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> M:
    """The module with the tensors of a file.

    Every key and shape must match, both ways: ValueError names the first few that do not. A tensor that already has
    the dtype and device asked for stays memory-mapped.
    """
    tensors = {current_name(name): tensor for name, tensor in tensors.items()}
    check_names(path, module.state_dict(), tensors)
    placed = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    module.load_state_dict(placed, strict=True, assign=True)
    if dtype.itemsize == 2:  # channels last: there convolutions of 16-bit numbers are faster, those of float32 are not
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval().requires_grad_(False)


def fingerprint(modules: Iterable[nn.Module], said: str = "") -> str:
    """Tells weights apart: from each one's name, dtype, shape and some eight of its numbers, spread evenly over it, and
    from what is said beside."""
    seen = hashlib.sha256(said.encode())
    for module in modules:
        for name, p in module.named_parameters():
            some = p.detach().flatten()[:: max(1, p.numel() // 8)].tolist()
            seen.update(f"{name} {p.dtype} {tuple(p.shape)} {some}".encode())
    return seen.hexdigest()


def current_name(name: str) -> str:
    """The name that a tensor bears today."""
    parts = name.split(".")
    if "attentions" in parts:
        for former, current in FORMER_NAMES:
            if former in parts:
                return name.replace(f".{former}.", f".{current}.")
    return name


def check_names(path: Path, expected: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    """Raises ValueError, one line, where names or shapes differ."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{shown(name)} is not a tensor of this model" for name in found if name not in expected]
    problems += [
        f"{name} is of {str(tensor.dtype).removeprefix('torch.')}, which no weights are"
        for name, tensor in found.items()
        if name in expected and tensor.dtype not in KINDS
    ]
    problems += [
        f"{name} has shape {tuple(found[name].shape)} where the config says {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path}: {'; '.join(problems[:3])}{more}")


def shown(name: str) -> str:
    """A name from a file, which may have anything in it, as a part of one line."""
    short = name if len(name) <= 200 else name[:200] + "…"
    return short if short.isprintable() else repr(short)
