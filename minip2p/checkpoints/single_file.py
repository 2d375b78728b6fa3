"""A checkpoint in one .safetensors file, in the names of the original codebases.

Such a file has neither configurations nor tokenizers. The small files of a folder in diffusers' layout, of the same
model family, supply them; configurations that the folder lacks are inferred from the tensors (`inferred_config`).
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minip2p.checkpoints.diffusers_folder import DiffusersFolder
from minip2p.checkpoints.file_formats import check_format, check_kind
from minip2p.checkpoints.inferred_config import InferredConfig
from minip2p.checkpoints.key_maps import (
    BARE_VAE_PREFIXES,
    CLIP_PREFIXES,
    OPENCLIP_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIXES,
    compvis_unet_key,
    compvis_vae_key,
    convert_tensor,
    is_ignored,
    openclip_key,
    openclip_tensor_names,
    projection_shape,
    vae_attention_names,
)
from minip2p.checkpoints.stated_facts import check_schedule, guess_prediction_type, read_facts
from minip2p.checkpoints.strict import build_on_meta
from minip2p.config import SchedulerConfig, UNetConfig, VAEConfig, config_size
from minip2p.io.tensors import printable, read_metadata, read_tensors
from minip2p.unet import UNet
from minip2p.vae import VAE

KNOWN_PREFIXES = (UNET_PREFIX, *VAE_PREFIXES, *BARE_VAE_PREFIXES, "cond_stage_model.", "conditioner.embedders.")

# The layers of Stable Diffusion 2's text encoder.
OPENCLIP_LAYER = re.compile(
    rf"({'|'.join(map(re.escape, OPENCLIP_PREFIXES['text_encoder']))})transformer\.resblocks\.(\d{{1,3}})\."
)


class SingleFile:
    """The files of a checkpoint in one file: see `minip2p.checkpoints.files.CheckpointFiles`."""

    def __init__(self, file: Path, config: Path | None):
        """Opens the file; its tensors are memory-mapped.

        config: a folder of the same model family, for what the file lacks; its weights are not read. Raises
        FileNotFoundError, or ValueError with one line if the file is not one of the supported models.
        """
        check_format(file)
        self.location = file
        self.folder = None if config is None else DiffusersFolder(config)
        self.root = file if config is None else config
        self.all_tensors = read_tensors(file)
        check_kind(file, self.all_tensors)
        for name in self.all_tensors:
            if not name.startswith(KNOWN_PREFIXES) and not is_ignored(name):
                raise ValueError(
                    f"{file}: {printable(name)} is not a tensor of a supported model, whose names begin with "
                    f"{UNET_PREFIX} or, in a VAE alone, encoder."
                )
        shapes = {name: tuple(tensor.shape) for name, tensor in self.all_tensors.items()}
        self.facts = read_facts(file, self.all_tensors, read_metadata(file))
        self.inferred = InferredConfig(file, shapes, self.facts)
        self.vae_prefix = next(filter(self.inferred.has_prefix, VAE_PREFIXES), "")

    def prefixes(self, component: str) -> tuple[str, ...]:
        """The prefixes that the names of a component's tensors may have."""
        if component == "unet":
            return (UNET_PREFIX,)
        if component == "vae":
            return (*VAE_PREFIXES, *BARE_VAE_PREFIXES)
        return (*CLIP_PREFIXES.get(component, ()), *OPENCLIP_PREFIXES.get(component, ()))

    def has(self, component: str) -> bool:
        return any(self.inferred.has_prefix(prefix) for prefix in self.prefixes(component))

    def folder_has_config(self, component: str) -> bool:
        return self.folder is not None and self.folder.config_file(component).is_file()

    def config_file(self, component: str) -> Path:
        """The file to name if a configuration is wrong: the folder's config.json, or this file if it is inferred."""
        if self.folder is not None and self.folder_has_config(component):
            return self.folder.config_file(component)
        return self.location

    def config(self, component: str) -> dict[str, Any]:
        """The folder's configuration of a component, or the inferred one if the folder has none.

        The UNet's number of input channels is always that of the file, which distinguishes inpainting models.
        Raises ValueError if the folder and the file state different prediction types or noise schedules.
        """
        if self.folder is None or not self.folder_has_config(component):
            config = self.inferred_config(component)
        else:
            config = self.folder.config(component)
            if component == "unet":
                config["in_channels"] = self.inferred.size(f"{UNET_PREFIX}input_blocks.0.0.weight", 1)
            if component == "scheduler":
                self.check_stated("prediction_type", config.get("prediction_type", "epsilon"))
                self.check_stated("rescale_betas_zero_snr", config.get("rescale_betas_zero_snr", False))
        if component == "scheduler":
            location = str(self.config_file(component))
            described = {name: value for name, value in config.items() if name != "clip_sample"}
            check_schedule(self.location, self.all_tensors, SchedulerConfig.from_dict(described, location), location)
        return config

    def check_stated(self, field: str, configured: Any) -> None:
        """Raises ValueError if the file states something else of the scheduler than the folder."""
        stated = self.facts.prediction_type if field == "prediction_type" else self.facts.is_zero_snr or None
        if stated is not None and stated != configured:
            raise ValueError(
                f"{self.config_file('scheduler')}: {field} is {configured!r}, but {self.location} states {stated!r}: "
                "correct that file, or pass a folder with tokenizers alone as config"
            )

    def inferred_config(self, component: str) -> dict[str, Any]:
        """The configuration of a component as the tensors tell it; ValueError where they do not."""
        if component in ("unet", "scheduler") and self.inferred.lacks_prediction_type():
            facts = replace(self.facts, prediction_type=self.unstated_prediction_type())
            self.inferred = replace(self.inferred, facts=facts)
        infer: dict[str, Callable[[], dict[str, Any]]] = {
            "": dict,  # model_index.json
            "unet": self.inferred.unet,
            "vae": lambda: self.inferred.vae(self.vae_prefix),
            "scheduler": self.inferred.scheduler,
        }
        return infer[component]() if component in infer else self.inferred.text_encoder(component)

    def unstated_prediction_type(self) -> str | None:
        """What a model predicts whose file does not state it: as the folder's scheduler says, or else as guessed."""
        if self.folder is not None and self.folder_has_config("scheduler"):
            return str(self.folder.config("scheduler").get("prediction_type", "epsilon"))
        return guess_prediction_type(self.location, self.all_tensors)

    def names(self) -> list[str]:
        """The titles that the file's metadata state."""
        metadata = self.facts.metadata
        return [metadata[field] for field in ("modelspec.title", "modelspec.architecture") if field in metadata]

    def tokenizer(self, component: str) -> Path:
        """The folder of a tokenizer. Raises ValueError if there is no `config` folder to take it from."""
        if self.folder is None:
            raise ValueError(
                f"{self.location}: a single file has no tokenizer: pass a folder in diffusers' layout, of the same "
                "model family, as config (its weights are not read)"
            )
        return self.folder.tokenizer(component)

    def tensors(self, component: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Path]:
        """The weights of a component by our names, and the file.

        dtype: those of another are converted (`read_tensors`); the others are memory-mapped.
        Raises ValueError if a tensor is missing, or if the component's prefix has tensors that it does not use.
        """
        original_names = self.original_names(component)
        for original_name in original_names.values():
            if original_name not in self.all_tensors:
                raise ValueError(f"{self.location}: {original_name} is missing")
        used = set(original_names.values())
        layers = self.text_layers(component) if component == "text_encoder" else 0
        for name in self.all_tensors:
            if name in used or is_ignored(name) or is_last_layer(name, layers):
                continue
            if name.startswith(self.prefixes(component)):
                raise ValueError(f"{self.location}: {printable(name)} is not a tensor of this model")
        stored = read_tensors(self.location, dtype, used)
        tensors = {name: convert_tensor(name, original, stored[original]) for name, original in original_names.items()}
        if component == "unet":
            is_linear = bool(self.config("unet").get("use_linear_projection", False))
            tensors = {
                name: projection_shape(t, is_linear) if PROJECTION.search(name) else t for name, t in tensors.items()
            }
        return tensors, self.location

    def original_names(self, component: str) -> dict[str, str]:
        """Our names of a component's tensors -> their names in this file."""
        file = self.config_file(component)
        if component == "unet":
            unet = UNetConfig.from_dict(self.config("unet"), str(file))
            names = build_on_meta(lambda: UNet(unet), file).state_dict()
            return {name: UNET_PREFIX + compvis_unet_key(name, unet) for name in names}
        if component == "vae":
            vae = VAEConfig.from_dict(self.config("vae"), str(file))
            names = build_on_meta(lambda: VAE(vae), file).state_dict()
            return {name: self.stored_name(self.vae_prefix + compvis_vae_key(name, vae)) for name in names}
        prefix, _, is_openclip = self.inferred.text_names(component)
        if is_openclip:
            text_names = openclip_tensor_names(self.text_layers(component), component == "text_encoder_2")
            return {name: self.stored_name(prefix + openclip_key(name)) for name in text_names}
        return {
            name.removeprefix(prefix).removeprefix("text_model."): name
            for name in self.all_tensors
            if name.startswith(prefix) and not is_ignored(name)
        }

    def stored_name(self, original_name: str) -> str:
        """The name that this file has for a tensor: the original one, or another that tools write in its place."""
        names = (*vae_attention_names(original_name), original_name + ".weight")
        return next((name for name in names if name in self.all_tensors), original_name)

    def text_layers(self, component: str) -> int:
        """How many layers of a text encoder are read: as the folder says, or else as inferred."""
        if self.folder is not None and self.folder_has_config(component):
            file = self.folder.config_file(component)
            return config_size(self.folder.config(component), "num_hidden_layers", 12, file)
        return self.inferred.text_layers(component)


# The projections before and after the spatial transformers of the UNet.
PROJECTION = re.compile(r"attentions\.\d+\.proj_(in|out)\.weight$")


def is_last_layer(name: str, layers: int) -> bool:
    """Whether a tensor belongs to the last layer of the text encoder of Stable Diffusion 2, which is not read.

    layers: how many layers of the text encoder are read.
    """
    layer = OPENCLIP_LAYER.match(name)
    return layer is not None and int(layer[2]) >= layers
