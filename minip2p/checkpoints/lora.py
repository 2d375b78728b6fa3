"""Low-rank adaptations (Hu et al. 2021): files that change a model's weights by W + s · (α / r) · B A.

They are merged into the weights of a twin of the model, so that nothing else has to know of them; the model itself
stays what it was. Names are those of kohya's trainers and of diffusers and PEFT, old and new.

Axes: r the rank, o outputs, i inputs of a layer.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from minip2p.checkpoints.components import Components
from minip2p.checkpoints.key_maps import compvis_unet_key
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.io.files import read_json
from minip2p.io.tensors import WEIGHT_DTYPES, printable, read_metadata, read_tensors
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.validation import is_finite

# The ends of the names: of A (r i), of B (o r), and of the number α.
DOWN, UP, ALPHA = "down", "up", "alpha"


KEY_SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        ".lora_down.weight": DOWN,
        ".lora_up.weight": UP,
        ".lora_A.weight": DOWN,
        ".lora_B.weight": UP,
        ".lora.down.weight": DOWN,
        ".lora.up.weight": UP,
        "_lora.down.weight": DOWN,
        "_lora.up.weight": UP,
        ".lora_linear_layer.down.weight": DOWN,
        ".lora_linear_layer.up.weight": UP,
        ".alpha": ALPHA,
    }
)


ENCODER_PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
)


Layer = tuple[str, str]  # the part of a model, and the name of a weight in it


@dataclass(frozen=True, eq=False)
class Lora:
    """What a file changes: for each weight A, B and α / r."""

    file: Path
    changes: Mapping[Layer, tuple[Tensor, Tensor, float]]

    @classmethod
    def read(cls, file: Path, parts: Components) -> "Lora":
        """Raises FileNotFoundError or ValueError with one line for a file that is none for this model."""
        places, found = layer_names(parts), defaultdict[Layer, dict[str, Tensor]](dict)
        for name, tensor in read_tensors(file).items():
            end = next((end for end in KEY_SUFFIXES if name.endswith(end)), None)
            layer = None if end is None else places.get(normalize_key(name.removesuffix(end)))
            if end is None or layer is None:
                raise ValueError(f"{file}: {printable(name)} is no low-rank change of a weight of this model")
            if KEY_SUFFIXES[end] in found[layer]:
                raise ValueError(f"{file}: {printable(name)} is there under another name as well")
            found[layer][KEY_SUFFIXES[end]] = tensor
        if not found:
            raise ValueError(f"{file}: has no tensors in it")
        changes = {layer: check_pair(file, layer, given, get_weight(parts, layer)) for layer, given in found.items()}
        said = adapter_settings(file)
        for layer, given in found.items():
            if ALPHA not in given:
                a, b, _ = changes[layer]
                changes[layer] = a, b, adapter_scale(file, said, layer, a.shape[0])
        return cls(file, changes)

    def delta(self, layer: Layer, like: Tensor) -> Tensor:
        """(α / r) B A in float32, in the weight's shape: of convolutions A has the kernel, or B A is one of a pixel."""
        a, b, scale = self.changes[layer]
        device = like.device
        made = b.to(device).float().flatten(1) @ a.to(device).float().flatten(1)
        return scale * made.reshape(like.shape)


def check_pair(file: Path, layer: Layer, given: Mapping[str, Tensor], weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """(A, B, α / r) of a layer. Raises ValueError where one is missing, or of another shape than the weight's."""
    name = ".".join(layer)
    if DOWN not in given or UP not in given:
        raise ValueError(f"{file}: of {name} only one of its two matrices is there")
    a, b = given[DOWN], given[UP]
    rank = a.shape[0] if a.ndim > 1 else 0
    fits = a.ndim in (2, 4) and b.ndim in (2, 4) and rank > 0 and b.shape[0] == weight.shape[0]
    if not fits or b[0].numel() != rank or a[0].numel() * b.shape[0] != weight.numel():
        raise ValueError(
            f"{file}: {name} is {tuple(weight.shape)}, and its matrices are {tuple(b.shape)} and {tuple(a.shape)}"
        )
    if ALPHA in given and given[ALPHA].numel() != 1:
        raise ValueError(f"{file}: the alpha of {name} is not one number")
    if any(one.dtype not in WEIGHT_DTYPES or not torch.isfinite(one.float()).all() for one in given.values()):
        raise ValueError(f"{file}: what it has for {name} is not finite, or no floating-point numbers")
    return a, b, float(given[ALPHA]) / rank if ALPHA in given else 1.0


def adapter_settings(file: Path) -> dict[str, Any]:
    """What PEFT says of its adapters: in the file's metadata, as diffusers keeps it; else in the adapter_config.json
    that it saves beside its own adapter_model.safetensors. Nothing of other files."""
    beside = file.parent / "adapter_config.json"
    if file.name == "adapter_model.safetensors" and beside.is_file():
        return read_json(beside)
    try:
        said = json.loads(read_metadata(file).get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ValueError(f"{file}: what its metadata say of the adapters is not JSON")
    return said


def adapter_scale(file: Path, said: Mapping[str, Any], layer: Layer, rank: int) -> float:
    """α / r of a layer by PEFT's settings, or α / √r where they ask for it (Kalajdzievski 2023); else 1."""
    part, name = layer[0], layer[1].removesuffix(".weight")

    def setting(key: str) -> Any:  # the file of one adapter does not say of which part it is
        return said.get(f"{part}.{key}", said.get(key))

    if setting("use_dora"):
        raise ValueError(f"{file}: is a DoRA, which is not the sum of two matrices")
    patterns = setting("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{file}: the alpha_pattern of {part} is {patterns!r}, and no mapping")
    names = (name, f"text_model.{name}") if part != "unet" else (name,)  # as transformers 5, and as 4 has them
    alpha = next(
        (own for pattern, own in patterns.items() if any(pattern_matches(file, pattern, one) for one in names)),
        setting("lora_alpha"),
    )
    if alpha is None:
        return 1.0
    if not is_finite(alpha):
        raise ValueError(f"{file}: the alpha of {part} is {alpha!r}, which is not a number")
    return float(alpha) / (rank**0.5 if setting("use_rslora") else rank)


def pattern_matches(file: Path, pattern: str, name: str) -> bool:
    """As PEFT has it: the pattern is the name, or its end. Raises ValueError for what is no pattern."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error as error:
        raise ValueError(f"{file}: {printable(pattern)} is no pattern of names ({error})") from None


def normalize_key(name: str) -> str:
    """A layer's name without what trainers put around it."""
    name = re.sub(r"\.processor\.|\.base_model\.model\.", ".", name)
    return re.sub(r"^(base_model\.model\.|diffusion_model\.)", "", re.sub(r"\.to_out$", ".to_out.0", name))


def layer_names(parts: Components) -> dict[str, Layer]:
    """What files may call the layers of a model."""
    found: dict[str, Layer] = {}
    for name, _ in matrix_layers(parts.unet):
        layer, theirs = (
            ("unet", name + ".weight"),
            compvis_unet_key(name + ".weight", parts.unet.config).removesuffix(".weight"),
        )
        for said in (f"unet.{name}", "lora_unet_" + name.replace(".", "_"), "lora_unet_" + theirs.replace(".", "_")):
            found[said] = layer
        found.setdefault(name, layer)
    for part, encoder in parts.text.encoders.items():
        for name, _ in matrix_layers(encoder):
            layer, own = (part, name + ".weight"), "text_model." + name.removeprefix("text_model.")
            found[f"{part}.{own}"] = layer
            for prefix in ENCODER_PREFIXES[part]:
                found[prefix + own.replace(".", "_")] = layer
    return found


def matrix_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that have a matrix."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield name, layer


def get_module(parts: Components, part: str) -> Any:
    return parts.unet if part == "unet" else parts.text.encoders[part]


def get_weight(parts: Components, layer: Layer) -> nn.Parameter:
    return get_module(parts, layer[0]).get_parameter(layer[1])


def merge(parts: Components, lora: Lora, scale: float) -> tuple[UNet, TextEncoder, CheckpointOrigin]:
    """The networks with W + scale · (α / r) · B A, summed in float32, in the weights that a LoRA changes: twins of the
    model's own, with which they share all other weights. Raises ValueError for a scale that is no number."""
    if not is_finite(scale):
        raise ValueError(f"the scale of a LoRA is a number, not {scale!r}")
    twins: dict[str, Any] = {}
    for layer in lora.changes:
        part, name = layer
        if part not in twins:
            own = get_module(parts, part)
            twins[part] = deepcopy(own, {id(tensor): tensor for tensor in (*own.parameters(), *own.buffers())})
        before, (path, _, leaf) = get_weight(parts, layer), name.rpartition(".")
        after = (before.float() + scale * lora.delta(layer, before)).to(before.dtype)
        if not after.isfinite().all() and before.isfinite().all():
            raise ValueError(f"{lora.file}: at a scale of {scale:g}, {part}'s {name} is too large for {before.dtype}")
        twins[part].get_submodule(path).register_parameter(leaf, nn.Parameter(after, requires_grad=False))
    said = [*filter(None, [parts.origin.labels.get("LoRA")]), f"{lora.file.name} at {scale:g}"]
    made = replace(parts.origin, labels={**parts.origin.labels, "LoRA": ", ".join(said)})
    return twins.pop("unet", parts.unet), parts.text.with_encoders(twins), made
