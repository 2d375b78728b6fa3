"""Low-rank adaptation (LoRA, Hu et al. 2021): files that change a model's weights by W + s · (α / r) · B A.

The changes are merged into copies of the weights, in a twin of the model that shares everything else with it, so that
no other code has to know about LoRA; the model itself does not change. The naming schemes are those of kohya's trainers
and of diffusers and PEFT, old and new.

Axes: r the rank, o outputs and i inputs of a layer.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minip2p.checkpoints.components import Components
from minip2p.checkpoints.key_maps import compvis_unet_key
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.io.files import parse_json, read_json
from minip2p.io.tensors import WEIGHT_DTYPES, printable, read_metadata, read_tensors
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.validation import is_finite

# What a tensor of a LoRA file is: A (r i), B (o r), or the number α. Its name ends in one of the suffixes.
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
# kohya's prefixes of the text encoders.
KOHYA_TEXT_PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
)


class WeightName(NamedTuple):
    """A weight of a model: its component ("unet", "text_encoder", "text_encoder_2") and its name in that network."""

    component: str
    name: str


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """The change of one weight, scale · B A.

    a: r i, or r i h w for a convolution with a kernel. b: o r, or o r 1 1. scale: α / r.
    """

    a: Tensor
    b: Tensor
    scale: float

    def delta(self, weight: Tensor) -> Tensor:
        """scale · B A in float32, in the shape and on the device of the weight that it changes."""
        a, b = (matrix.to(weight.device).float().flatten(1) for matrix in (self.a, self.b))
        return self.scale * (b @ a).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA file: the update of each weight that it changes."""

    file: Path
    updates: Mapping[WeightName, LowRankUpdate]

    @classmethod
    def read(cls, file: Path, components: Components) -> "Lora":
        """Reads a LoRA file for a model.

        Raises FileNotFoundError, or ValueError with one line if the file is not a LoRA of this model.
        """
        weights = known_names(components)
        tensors = defaultdict[WeightName, dict[str, Tensor]](dict)
        for name, tensor in read_tensors(file).items():
            suffix = next((suffix for suffix in KEY_SUFFIXES if name.endswith(suffix)), None)
            weight = None if suffix is None else weights.get(normalize_key(name.removesuffix(suffix)))
            if suffix is None or weight is None:
                raise ValueError(f"{file}: {printable(name)} is not a low-rank update of a weight of this model")
            if KEY_SUFFIXES[suffix] in tensors[weight]:
                raise ValueError(f"{file}: {printable(name)} is in the file under another name as well")
            tensors[weight][KEY_SUFFIXES[suffix]] = tensor
        if not tensors:
            raise ValueError(f"{file}: has no tensors in it")
        updates = {
            weight: check_update(file, weight, pair, get_weight(components, weight)) for weight, pair in tensors.items()
        }
        settings = adapter_settings(file)
        for weight, pair in tensors.items():
            if ALPHA not in pair:
                rank = updates[weight].a.shape[0]
                updates[weight] = replace(updates[weight], scale=adapter_scale(file, settings, weight, rank))
        return cls(file, updates)


def check_update(file: Path, name: WeightName, tensors: Mapping[str, Tensor], weight: Tensor) -> LowRankUpdate:
    """The update of a weight from its tensors in a file (`DOWN`, `UP`, `ALPHA`); its scale is 1 if α is not among them.

    Raises ValueError if A or B is missing, does not fit the weight, or is not finite.
    """
    full_name = ".".join(name)
    if DOWN not in tensors or UP not in tensors:
        raise ValueError(f"{file}: of the two matrices for {full_name} only one is in the file")
    a, b = tensors[DOWN], tensors[UP]
    rank = a.shape[0] if a.ndim > 1 else 0
    fits = a.ndim in (2, 4) and b.ndim in (2, 4) and rank > 0 and b.shape[0] == weight.shape[0]
    if not fits or b[0].numel() != rank or a[0].numel() * b.shape[0] != weight.numel():
        raise ValueError(
            f"{file}: {full_name} has shape {tuple(weight.shape)}, which its matrices of shapes {tuple(b.shape)} and "
            f"{tuple(a.shape)} do not fit"
        )
    if ALPHA in tensors and tensors[ALPHA].numel() != 1:
        raise ValueError(f"{file}: the alpha of {full_name} is not a single number")
    if any(
        tensor.dtype not in WEIGHT_DTYPES or not torch.isfinite(tensor.float()).all() for tensor in tensors.values()
    ):
        raise ValueError(f"{file}: a tensor for {full_name} is not finite or not of a floating-point dtype")
    return LowRankUpdate(a, b, float(tensors[ALPHA]) / rank if ALPHA in tensors else 1.0)


def adapter_settings(file: Path) -> dict[str, Any]:
    """PEFT's settings of an adapter; empty for other files.

    diffusers stores them in the file's metadata; PEFT stores them in adapter_config.json, in the same folder as
    adapter_model.safetensors. Raises ValueError if they cannot be read.
    """
    config = file.parent / "adapter_config.json"
    if file.name == "adapter_model.safetensors" and config.is_file():
        return read_json(config)
    try:
        settings = parse_json(read_metadata(file).get("lora_adapter_metadata", "{}"), str(file))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: the lora_adapter_metadata in its metadata is not a JSON object")
    return settings


def adapter_scale(file: Path, settings: Mapping[str, Any], weight: WeightName, rank: int) -> float:
    """α / r by PEFT's settings, or α / √r if they ask for it (rsLoRA, Kalajdzievski 2023); 1 if they state no α.

    Raises ValueError for settings that cannot be honoured.
    """
    component, name = weight.component, weight.name.removesuffix(".weight")

    def setting(key: str) -> Any:  # the settings of a file with one adapter do not name its component
        return settings.get(f"{component}.{key}", settings.get(key))

    if setting("use_dora"):
        raise ValueError(f"{file}: is a DoRA, which does more than add a product of two matrices")
    patterns = setting("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{file}: the alpha_pattern of {component} is {patterns!r}, which is not a mapping")
    names = (name,) if component == "unet" else (name, f"text_model.{name}")  # of transformers 5 and 4
    alpha = setting("lora_alpha")
    for pattern, value in patterns.items():
        if any(pattern_matches(file, pattern, name) for name in names):
            alpha = value
            break
    if alpha is None:
        return 1.0
    if not is_finite(alpha):
        raise ValueError(f"{file}: the alpha of {component} is {alpha!r}, which is not a number")
    return float(alpha) / (rank**0.5 if setting("use_rslora") else rank)


def pattern_matches(file: Path, pattern: str, name: str) -> bool:
    """Whether a pattern matches a name or the end of it after a dot, as in PEFT.

    Raises ValueError if it is not a regular expression.
    """
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error as error:
        raise ValueError(f"{file}: {printable(pattern)} is not a pattern of names ({error})") from None


def normalize_key(name: str) -> str:
    """Removes from a layer's name what trainers add to it."""
    name = re.sub(r"\.processor\.|\.base_model\.model\.", ".", name)
    return re.sub(r"^(base_model\.model\.|diffusion_model\.)", "", re.sub(r"\.to_out$", ".to_out.0", name))


def known_names(components: Components) -> dict[str, WeightName]:
    """What LoRA files may call the layers of a model (after `normalize_key`) -> the weights that they change."""
    names: dict[str, WeightName] = {}
    for layer in matrix_layers(components.unet):
        weight = WeightName("unet", layer + ".weight")
        original = compvis_unet_key(weight.name, components.unet.config).removesuffix(".weight")
        names[f"unet.{layer}"] = weight
        names["lora_unet_" + layer.replace(".", "_")] = weight
        names["lora_unet_" + original.replace(".", "_")] = weight
        names.setdefault(layer, weight)
    for component, encoder in components.text.encoders.items():
        for layer in matrix_layers(encoder):
            weight = WeightName(component, layer + ".weight")
            prefixed = "text_model." + layer.removeprefix("text_model.")  # as in transformers 4
            names[f"{component}.{prefixed}"] = weight
            for prefix in KOHYA_TEXT_PREFIXES[component]:
                names[prefix + prefixed.replace(".", "_")] = weight
    return names


def matrix_layers(network: nn.Module) -> Iterator[str]:
    """The names of the layers that a LoRA can change: linear layers and convolutions."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield name


def get_network(components: Components, component: str) -> Any:
    return components.unet if component == "unet" else components.text.encoders[component]


def get_weight(components: Components, weight: WeightName) -> nn.Parameter:
    return get_network(components, weight.component).get_parameter(weight.name)


def merge(components: Components, lora: Lora, scale: float) -> tuple[UNet, TextEncoder, CheckpointOrigin]:
    """Returns the networks with a LoRA merged into them, and the origin that names it.

    The changed weights are W + scale · (α / r) · B A, summed in float32; all others are shared with `components`, which
    does not change. Raises ValueError if the scale is not finite, or so large that a weight overflows.
    """
    if not is_finite(scale):
        raise ValueError(f"the scale of a LoRA must be a finite number, not {scale!r}")
    twins: dict[str, Any] = {}
    for name, update in lora.updates.items():
        if name.component not in twins:
            network = get_network(components, name.component)
            shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
            twins[name.component] = deepcopy(network, shared)
        before = get_weight(components, name)
        after = (before.float() + scale * update.delta(before)).to(before.dtype)
        if not after.isfinite().all() and before.isfinite().all():
            raise ValueError(
                f"{lora.file}: at a scale of {scale:g}, {name.component}'s {name.name} is too large for {before.dtype}"
            )
        module, _, leaf = name.name.rpartition(".")
        parameter = nn.Parameter(after, requires_grad=False)
        twins[name.component].get_submodule(module).register_parameter(leaf, parameter)
    label = f"{lora.file.name} at {scale:g}"
    if earlier := components.origin.labels.get("LoRA"):
        label = f"{earlier}, {label}"
    origin = replace(components.origin, labels={**components.origin.labels, "LoRA": label})
    return twins.pop("unet", components.unet), components.text.with_encoders(twins), origin
