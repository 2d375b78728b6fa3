"""A checkpoint in the layout of diffusers: a folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/."""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minip2p.checkpoints.file_formats import PICKLED_SUFFIXES, check_format, pickle_error
from minip2p.config import SamplingDefaults
from minip2p.io.files import read_json
from minip2p.io.tensors import printable, read_tensors

# The beginning of the names of weight files: that of the UNet and the VAE, and that of the text encoders.
NETWORK_STEM, TEXT_ENCODER_STEM = "diffusion_pytorch_model", "model"
# The rest of these names, in order of preference: full precision before fp16 before bf16, one file before shards.
VARIANTS = ("", ".fp16", ".bf16")
WEIGHT_SUFFIXES = tuple(
    suffix for variant in VARIANTS for suffix in (f"{variant}.safetensors", f".safetensors.index{variant}.json")
)

SHARED_PARTS = ("vae", "text_encoder", "tokenizer")  # those that a model may take from another


def weights_stem(component: str) -> str:
    """The beginning of the names of a component's weight files."""
    return TEXT_ENCODER_STEM if component.startswith("text_encoder") else NETWORK_STEM


class DiffusersFolder:
    """The files of a checkpoint in a folder: see `minip2p.checkpoints.files.CheckpointFiles`."""

    def __init__(self, root: Path, renamed: Mapping[str, str] | None = None, weights: Path | None = None):
        """Reads nothing yet.

        renamed: the folder names of components that are not stored under their own name. weights: the file of weights
        to read, where `weights_file` is not to choose one. Raises FileNotFoundError if `root` is not a folder.
        """
        if not root.is_dir():
            problem = "is a file, not a folder" if root.is_file() else "no such folder"
            raise FileNotFoundError(
                f"{root}: {problem}; a model is a folder with unet/, vae/, text_encoder/, "
                "tokenizer/ and scheduler/, or a .safetensors file"
            )
        self.location = self.root = root
        self.renamed = dict(renamed or {})
        self.weights = weights

    def path(self, component: str) -> Path:
        """The folder of a component: the model's own, or where there is none and the model takes parts from another
        (`parts_from` in its minip2p.json), that of the other."""
        folder = self.location / self.renamed.get(component, component)
        if folder.is_dir() or component in self.renamed or component.removesuffix("_2") not in SHARED_PARTS:
            return folder
        return folder if self.neighbour is None else self.neighbour / component

    @cached_property
    def neighbour(self) -> Path | None:
        """The folder from which the model takes parts. Raises FileNotFoundError or ValueError, one line."""
        file = self.root / "minip2p.json"
        name = SamplingDefaults.read(file).parts_from if file.is_file() else ""
        if name and not (self.root.resolve().parent / name).is_dir():
            raise FileNotFoundError(
                f"{file}: the model takes parts from the folder {name} beside it, and there is none"
            )
        return self.root.resolve().parent / name if name else None

    def has(self, component: str) -> bool:
        return self.path(component).is_dir()

    def config_file(self, component: str) -> Path:
        """The file of a component's configuration; of the whole model's (model_index.json) if `component` is ""."""
        if not component:
            return self.location / "model_index.json"
        return self.path(component) / ("scheduler_config.json" if component == "scheduler" else "config.json")

    def config(self, component: str) -> dict[str, Any]:
        """The contents of `config_file`. A model_index.json may be missing, and is empty then.

        Raises FileNotFoundError or ValueError with one line.
        """
        file = self.config_file(component)
        if not component and not file.exists():
            return {}
        if not file.exists() and (reason := self.missing_reason(component)):
            raise FileNotFoundError(f"{self.location}: {reason}")
        return read_json(file)

    def missing_reason(self, component: str) -> str | None:
        """What a folder without a component is, if its contents tell: the rest of an error's line."""
        root = self.location
        if (root.parent / "model_index.json").is_file():
            return f"is a part of a model: give the folder above it, {root.parent}"
        if (root / "transformer").is_dir():
            return "is a model with a transformer, such as SD 3 or Flux, which is not supported: a UNet is needed"
        if self.path(f"{component}_ema").is_dir():
            return f"has no {component}/, but {component}_ema/: to use it, rename it to {component}/"
        if (root / "config.json").is_file():
            return f"has no {component}/: it is one component, such as a VAE, and not a model"
        if files := sorted(root.glob("*.safetensors")):
            return f"has no {component}/; if {files[0].name} is a whole checkpoint, give the file instead of the folder"
        return None

    def tokenizer(self, component: str) -> Path:
        """The folder of a tokenizer. Raises FileNotFoundError if it has neither a vocabulary nor a tokenizer.json."""
        folder = self.path(component)
        alternatives = (("vocab.json", "merges.txt"), ("tokenizer.json",))
        if not any(all((folder / name).is_file() for name in names) for names in alternatives):
            raise FileNotFoundError(
                f"{folder / 'vocab.json'}: no such file; is {self.location} a diffusers model folder?"
            )
        return folder

    def names(self) -> list[str]:
        """The names of models that this one was made from, as its configurations state them."""
        stated = [self.config(component).get("_name_or_path") for component in ("", "unet")]
        return [name for name in stated if isinstance(name, str)]

    def weights_file(self, component: str) -> Path:
        """The file of a component's weights, or the index of its shards: the first of `WEIGHT_SUFFIXES` that exists.

        Raises FileNotFoundError if there is none, and ValueError if there are only pickled weights.
        """
        if self.weights is not None:
            return self.weights
        folder, stem = self.path(component), weights_stem(component)
        candidates = [folder / (stem + suffix) for suffix in WEIGHT_SUFFIXES]
        for file in candidates:
            if file.is_file():
                return file
        for file in sorted(folder.glob("*")):
            if file.suffix in PICKLED_SUFFIXES:
                raise pickle_error(file)
        if others := sorted(folder.glob("*.safetensors")):
            is_shard = re.search(r"-\d{5}-of-\d{5}", others[0].name)
            todo = (
                f"download {stem}.safetensors.index.json, the index of the shards" if is_shard else "rename it to this"
            )
            raise FileNotFoundError(f"{candidates[0]}: no such file, and {others[0].name} is not read as it is: {todo}")
        raise FileNotFoundError(f"{candidates[0]}: no such file; is {self.location} a diffusers model folder?")

    def tensors(self, component: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Path]:
        """The weights of a component by name, and the file (or index) that they come from.

        dtype: those of another are converted (`read_tensors`); the others are memory-mapped.
        Raises FileNotFoundError or ValueError with one line.
        """
        file = self.weights_file(component)
        if file.suffix == ".json":
            return read_shards(file, dtype), file
        check_format(file)
        return read_tensors(file, dtype), file


def read_shards(index: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of all files that a .safetensors.index.json names. dtype: see `read_tensors`.

    Raises FileNotFoundError or ValueError, with one line, unless every tensor is exactly where the index says it is.
    """
    files = read_json(index).get("weight_map")  # tensor name -> file name
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index}: has no weight_map, which says which file each tensor is in")
    merged: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file or "\\" in file or not file.isprintable():
            raise ValueError(f"{index}: names the file {file!r}, which is not in the same folder")
        check_format(index.parent / file)
        shard = read_tensors(index.parent / file, dtype)
        for name in shard:
            listed = files.get(name, file)  # a tensor that the index does not list is judged by the module's own keys
            if listed != file or name in merged:
                raise ValueError(
                    f"{index}: {printable(name)} is in {file}, but the index says it is in {printable(listed)}"
                )
        merged |= shard
    if missing := [name for name in files if name not in merged]:
        raise ValueError(f"{index}: {printable(missing[0])} is in none of the files that it names")
    return merged
