"""Low-rank adaptation (LoRA, Hu et al. 2021): files that change a model's weights by W + s · (α / r) · B A.

DoRA (Liu et al. 2024), which scales the rows or columns of that sum, and full differences are read as well. The changes
are merged into copies of the weights, in a twin of the model that shares everything else with it, so that no other code
has to know about LoRA; the model itself does not change. `minip2p.checkpoints.adapter_names` lists what the tensors are
called.

Axes: r the rank, o outputs and i inputs of a layer.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minip2p.checkpoints import adapter_names
from minip2p.checkpoints.adapter_files import ADAPTER_CONFIG, PEFT_FILE, find_lora
from minip2p.checkpoints.adapter_names import (
    ALPHA,
    BIAS_DIFFERENCE,
    DIFFERENCE,
    DORA_SCALE,
    DOWN,
    MAGNITUDE,
    UP,
    LayerNames,
)
from minip2p.checkpoints.components import Components
from minip2p.checkpoints.embeddings import Embedding, add_embedding, bundled_embeddings, twin
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.errors import Notice
from minip2p.io.files import parse_json, read_json
from minip2p.io.tensors import WEIGHT_DTYPES, printable, read_metadata, read_tensors
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.validation import is_finite


class WeightName(NamedTuple):
    """A weight of a model: its component ("unet", "text_encoder", "text_encoder_2") and its name in that network."""

    component: str
    name: str


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """The change of one weight, scale · B A.

    a: r i, or r i h w for a convolution with a kernel. b: o r, or o r 1 1. scale: α / r. magnitude: DoRA's m, the norms
    of the changed weight, with as many axes as the weight: o 1 (of each output) or 1 i (of each input); None for LoRA.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def delta(self, weight: Tensor) -> Tensor:
        """The change at a scale of 1 in float32, in the shape and on the device of the weight that it changes.

        Of a DoRA it is m · V / ‖V‖ - W for V = W + scale · B A, with the norms over all axes on which m has one entry.
        """
        a, b = (matrix.to(weight.device).float().flatten(1) for matrix in (self.a, self.b))
        delta = self.scale * (b @ a).reshape(weight.shape)
        if self.magnitude is None:
            return delta
        changed = weight.float() + delta
        axis = 0 if self.magnitude.shape[:2] == (weight.shape[0], 1) else 1
        norm = torch.linalg.vector_norm(changed, dim=[d for d in range(weight.ndim) if d != axis], keepdim=True)
        return self.magnitude.to(weight.device).float() * changed / norm - weight.float()


@dataclass(frozen=True, eq=False)
class FullUpdate:
    """The change of a weight or a bias by a difference of its own size."""

    difference: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        """The difference in float32, in the shape and on the device of the weight."""
        return self.difference.to(weight.device).float().reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA file: the update of each weight that it changes, and the embeddings that are bundled with it."""

    file: Path
    updates: Mapping[WeightName, LowRankUpdate | FullUpdate]
    embeddings: tuple[Embedding, ...] = ()

    @classmethod
    def read(cls, where: str | Path, components: Components) -> "Lora":
        """Reads a LoRA for a model: a file, a folder of diffusers or PEFT, or a name on the hub.

        Raises FileNotFoundError, or ValueError with one line if it is not a LoRA of this model.
        """
        parts = find_lora(where)
        updates: dict[WeightName, LowRankUpdate | FullUpdate] = {}
        embeddings: list[Embedding] = []
        for network, file in parts.items():
            changes, words = read_file(file, network, components)
            updates |= changes
            embeddings += words
        return cls(next(iter(parts.values())), updates, tuple(embeddings))


def read_file(
    file: Path, network: str, components: Components
) -> tuple[dict[WeightName, LowRankUpdate | FullUpdate], list[Embedding]]:
    """The updates in a file, and the embeddings that are bundled with them. ValueError as `Lora.read`.

    network: what the names of its tensors belong to; "" where they say it themselves.
    """
    tensors = read_tensors(file)
    settings = adapter_settings(file)
    if kind := adapter_names.other_kind(tensors):
        raise ValueError(f"{file}: is {kind}")
    prefix = f"{network}." if network else ""
    tensors = {prefix + n: t for n, t in tensors.items() if not n.startswith(adapter_names.IGNORED_PREFIXES)}
    embeddings, tensors = bundled_embeddings(file, tensors)
    grouped = group_by_weight(file, tensors, components)
    if not tensors and not embeddings:
        raise ValueError(f"{file}: has no tensors in it")
    return {name: make_update(file, name, roles, components, settings) for name, roles in grouped.items()}, embeddings


def group_by_weight(
    file: Path, tensors: Mapping[str, Tensor], components: Components
) -> dict[WeightName, dict[str, Tensor]]:
    """The tensors of each weight that a file changes, by what they are (`adapter_names.SUFFIXES`).

    Raises ValueError for a tensor that changes no weight of the model, or that is there under two names.
    """
    names = LayerNames.of(
        {"unet": weighted_layers(components.unet)}
        | {name: weighted_layers(encoder) for name, encoder in components.text.encoders.items()},
        components.unet.config,
    )
    grouped = defaultdict[WeightName, dict[str, Tensor]](dict)
    for name, tensor in tensors.items():
        split = adapter_names.split_suffix(name)
        if split is None:
            raise ValueError(f"{file}: {printable(name)} is not a tensor of a LoRA")
        layer_name, role = split
        layer = names.find(layer_name)
        if layer is None:
            if adapter_names.is_unread(layer_name):
                continue
            raise ValueError(
                f"{file}: changes {printable(layer_name)}, which this model does not have: it is a LoRA of another "
                f"kind of model{stated_architecture(file)}"
            )
        weight = WeightName(layer.component, f"{layer.name}.{'bias' if role == BIAS_DIFFERENCE else 'weight'}")
        if role in grouped[weight]:
            raise ValueError(f"{file}: {printable(name)} is in the file under another name as well")
        grouped[weight][role] = tensor
    return grouped


def stated_architecture(file: Path) -> str:
    """The architecture that the metadata of a LoRA states, for an error: kohya's scripts and others write it."""
    metadata = read_metadata(file)
    stated = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version")
    return f" ({printable(stated)})" if stated else ""


def make_update(
    file: Path,
    name: WeightName,
    tensors: Mapping[str, Tensor],
    components: Components,
    settings: Mapping[str, Any],
) -> LowRankUpdate | FullUpdate:
    """The update of a weight from its tensors in a file.

    tensors: by what they are. settings: PEFT's, which have α if the tensors do not.
    Raises ValueError if the tensors are not complete, do not fit the weight, or are not finite.
    """
    full_name = ".".join(name)
    weight = get_weight(components, name)
    if weight is None:
        raise ValueError(f"{file}: changes {full_name}, but this model has no bias there")
    check_numbers(file, full_name, tensors)
    if DIFFERENCE in tensors or BIAS_DIFFERENCE in tensors:
        return full_update(file, full_name, tensors, weight)
    update = low_rank_update(file, full_name, tensors, weight)
    if ALPHA not in tensors:
        update = replace(update, scale=adapter_scale(file, settings, name, update.a.shape[0]))
    if peft_setting(settings, name.component, "use_dora") and update.magnitude is None:
        raise ValueError(f"{file}: is a DoRA by its settings, but has no magnitudes for {full_name}")
    return update


def check_numbers(file: Path, full_name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a tensor is not finite or not of a dtype that weights have; α may be an integer."""
    if ALPHA in tensors and tensors[ALPHA].numel() != 1:
        raise ValueError(f"{file}: the alpha of {full_name} is not a single number")
    for role, tensor in tensors.items():
        is_number = tensor.dtype in WEIGHT_DTYPES or (role == ALPHA and tensor.dtype in INTEGER_DTYPES)
        if not is_number or not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{file}: a tensor for {full_name} is not finite or not of a floating-point dtype")


# diffusers' conversion to kohya's names writes α as int64.
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def full_update(file: Path, full_name: str, tensors: Mapping[str, Tensor], weight: Tensor) -> FullUpdate:
    """The update of a weight by a difference. LyCORIS writes an α with it that changes nothing."""
    if not tensors.keys() <= {DIFFERENCE, BIAS_DIFFERENCE, ALPHA}:
        raise ValueError(f"{file}: has both a low-rank update and a difference for {full_name}")
    difference = tensors[BIAS_DIFFERENCE if BIAS_DIFFERENCE in tensors else DIFFERENCE]
    if difference.numel() != weight.numel() or difference.shape[:1] != weight.shape[:1]:
        raise ValueError(
            f"{file}: {full_name} has shape {tuple(weight.shape)}, which a difference of shape "
            f"{tuple(difference.shape)} does not fit"
        )
    return FullUpdate(difference)


def low_rank_update(file: Path, full_name: str, tensors: Mapping[str, Tensor], weight: Tensor) -> LowRankUpdate:
    """The low-rank update of a weight; its scale is 1 if α is not among the tensors."""
    if DOWN not in tensors or UP not in tensors:
        raise ValueError(f"{file}: of the two matrices for {full_name} {count_matrices(tensors)} is in the file")
    a, b = tensors[DOWN], tensors[UP]
    rank = a.shape[0] if a.ndim > 1 else 0
    fits = a.ndim in (2, 4) and b.ndim in (2, 4) and rank > 0 and b.shape[0] == weight.shape[0] and weight.ndim > 1
    if not fits or b[0].numel() != rank or a[0].numel() * b.shape[0] != weight.numel():
        raise ValueError(
            f"{file}: {full_name} has shape {tuple(weight.shape)}, which its matrices of shapes {tuple(b.shape)} and "
            f"{tuple(a.shape)} do not fit"
        )
    scale = float(tensors[ALPHA]) / rank if ALPHA in tensors else 1.0
    return LowRankUpdate(a, b, scale, magnitude(file, full_name, tensors, weight))


def count_matrices(tensors: Mapping[str, Tensor]) -> str:
    return "only one" if DOWN in tensors or UP in tensors else "none"


def magnitude(file: Path, full_name: str, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor | None:
    """DoRA's magnitudes, with as many axes as the weight; None if there are none.

    PEFT has one number for each output: o, or 1 o 1 1. LyCORIS, OneTrainer and ComfyUI have a tensor with the axes of
    the weight, which has one number for each output (o 1) or for each input (1 i).
    """
    outputs, inputs = weight.shape[0], weight.shape[1] if weight.ndim > 1 else 1
    if MAGNITUDE in tensors:
        values, is_output = tensors[MAGNITUDE], True
    elif DORA_SCALE in tensors:
        values = tensors[DORA_SCALE]
        is_output = values.shape[:1] == weight.shape[:1]
    else:
        return None
    if values.numel() != (outputs if is_output else inputs):
        raise ValueError(
            f"{file}: {full_name} has shape {tuple(weight.shape)}, which magnitudes (DoRA) of shape "
            f"{tuple(values.shape)} do not fit"
        )
    others = [1] * (weight.ndim - 2)
    return values.reshape(outputs, 1, *others) if is_output else values.reshape(1, inputs, *others)


def adapter_settings(file: Path) -> dict[str, Any]:
    """PEFT's settings of an adapter; empty for other files.

    diffusers stores them in the file's metadata; PEFT stores them in adapter_config.json, in the same folder as
    adapter_model.safetensors. Raises ValueError if they cannot be read.
    """
    config = file.parent / ADAPTER_CONFIG
    if file.name == PEFT_FILE and config.is_file():
        settings = read_json(config)
        kind = settings.get("peft_type", "LORA")
        if kind != "LORA":
            raise ValueError(f"{file}: is of PEFT's kind {printable(str(kind))}, {adapter_names.NOT_MERGED}")
        return settings
    try:
        stated = parse_json(read_metadata(file).get("lora_adapter_metadata", "{}"), str(file))
    except ValueError:
        stated = None
    if not isinstance(stated, dict):
        raise ValueError(f"{file}: the lora_adapter_metadata in its metadata is not a JSON object")
    return stated


def adapter_scale(file: Path, settings: Mapping[str, Any], weight: WeightName, rank: int) -> float:
    """α / r by PEFT's settings, or α / √r if they ask for it (rsLoRA, Kalajdzievski 2023); 1 if they state no α.

    Raises ValueError for settings that cannot be honoured.
    """
    component, name = weight.component, weight.name.removesuffix(".weight")

    def setting(key: str) -> Any:
        return peft_setting(settings, component, key)

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


def peft_setting(settings: Mapping[str, Any], component: str, key: str) -> Any:
    """A setting of PEFT's for a network. The settings of a file with one adapter do not name its network."""
    return settings.get(f"{component}.{key}", settings.get(key))


def weighted_layers(network: nn.Module) -> Iterator[str]:
    """The names of the layers that have a weight: linear layers, convolutions, norms and embeddings."""
    for name, layer in network.named_modules():
        if isinstance(getattr(layer, "weight", None), nn.Parameter):
            yield name


def get_network(components: Components, component: str) -> Any:
    return components.unet if component == "unet" else components.text.encoders[component]


def get_weight(components: Components, weight: WeightName) -> nn.Parameter | None:
    """A weight or a bias; None if its layer has no bias."""
    layer, _, leaf = weight.name.rpartition(".")
    value: nn.Parameter | None = getattr(get_network(components, weight.component).get_submodule(layer), leaf, None)
    return value


def merge(components: Components, lora: Lora, scale: float) -> tuple[UNet, TextEncoder, CheckpointOrigin]:
    """Returns the networks with a LoRA merged into them, and the origin that names it.

    The changed weights are W + scale · (α / r) · B A, summed in float32; all others are shared with `components`, which
    does not change. Of a DoRA, which gives the weight W' at a scale of 1, they are W + scale · (W' - W). Bundled
    embeddings become words of the tokenizer.
    Raises ValueError if the scale is not finite, or so large that a weight overflows.
    """
    if not is_finite(scale):
        raise ValueError(f"the scale of a LoRA must be a finite number, not {scale!r}")
    twins: dict[str, Any] = {}
    for name, update in lora.updates.items():
        if name.component not in twins:
            twins[name.component] = twin(get_network(components, name.component))
        before = get_network(components, name.component).get_parameter(name.name)
        after = (before.float() + scale * update.delta(before)).to(before.dtype)
        if not after.isfinite().all() and before.isfinite().all():
            raise ValueError(
                f"{lora.file}: at a scale of {scale:g}, {name.component}'s {name.name} is too large for {before.dtype}"
            )
        module, _, leaf = name.name.rpartition(".")
        parameter = nn.Parameter(after, requires_grad=False)
        twins[name.component].get_submodule(module).register_parameter(leaf, parameter)
    origin = components.origin.with_label("LoRA", f"{lora.file.name} at {scale:g}")
    unet = twins.pop("unet", components.unet)
    text = components.text.with_encoders(twins)
    for embedding in lora.embeddings:
        try:
            text = add_embedding(text, embedding)
        except ValueError as error:
            warnings.warn(f"{error}; the LoRA is merged without it", Notice, stacklevel=3)
    return unet, text, origin
