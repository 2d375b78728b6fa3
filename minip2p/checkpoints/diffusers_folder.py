"""A model's files in the layout of diffusers: a folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minip2p.io.files import read_json
from minip2p.io.tensors import printable, read_tensors

STEMS = ("diffusion_pytorch_model", "model")  # of the networks', and of the text encoders' weights


VARIANTS = ("", ".fp16", ".bf16")  # in the order in which they are taken


WEIGHT_SUFFIXES = tuple(kind for v in VARIANTS for kind in (f"{v}.safetensors", f".safetensors.index{v}.json"))


PICKLED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")


class DiffusersFolder:
    """The parts of a model in a folder. named: a part whose folder has another name. only: the file of weights to read.
    Raises FileNotFoundError where there is no folder."""

    def __init__(self, root: Path, named: Mapping[str, str] | None = None, only: Path | None = None):
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root}: no such folder; a model is a folder with unet/, vae/, text_encoder/, "
                "tokenizer/ and scheduler/, or a .safetensors file"
            )
        self.location, self.root, self.renamed_parts, self.weights_path = root, root, dict(named or {}), only

    def path(self, part: str) -> Path:
        return self.location / self.renamed_parts.get(part, part)

    def has(self, part: str) -> bool:
        return self.path(part).is_dir()

    def config_file(self, part: str) -> Path:
        if not part:
            return self.location / "model_index.json"
        return self.path(part) / ("scheduler_config.json" if part == "scheduler" else "config.json")

    def config(self, part: str) -> dict[str, Any]:
        """What a part's config.json says; the folder's own model_index.json where the part is "". Empty where there is
        no model_index.json."""
        if part:
            return read_json(self.config_file(part))
        index = self.location / "model_index.json"
        return read_json(index) if index.exists() else {}

    def tokenizer(self, part: str) -> Path:
        """The folder of a tokenizer: its vocabulary and merges, or tokenizer.json."""
        folder = self.path(part)
        alternatives = (("vocab.json", "merges.txt"), ("tokenizer.json",))
        if not any(all((folder / name).is_file() for name in names) for names in alternatives):
            raise FileNotFoundError(
                f"{folder / 'vocab.json'}: no such file; is {self.location} a diffusers model folder?"
            )
        return folder

    def weights_file(self, part: str) -> Path:
        """The file of a part's weights, or the index of several: the plain one, or else a variant.
        Raises FileNotFoundError, ValueError where there are only weights that would have to be unpickled."""
        if self.weights_path is not None:
            return self.weights_path
        stem = STEMS[part.startswith("text_encoder")]
        found = [self.path(part) / (stem + kind) for kind in WEIGHT_SUFFIXES]
        for file in found:
            if file.is_file():
                return file
        there: Iterable[Path] = sorted(self.path(part).glob("*")) if self.has(part) else ()
        if pickled := [file.name for file in there if file.suffix in PICKLED_SUFFIXES]:
            raise ValueError(
                f"{self.path(part) / pickled[0]}: is pickled, and so a program, which is never run here: "
                "get the weights as safetensors"
            )
        raise FileNotFoundError(f"{found[0]}: no such file; is {self.location} a diffusers model folder?")

    def tensors(self, part: str) -> tuple[dict[str, Tensor], Path]:
        """A part's weights by name, memory-mapped, and the file that they are from."""
        file = self.weights_file(part)
        return (read_shards(file) if file.suffix == ".json" else read_tensors(file)), file


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of the files that an index names. Raises FileNotFoundError or ValueError with one line."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(f"{index}: has no weight_map, which says in which file each tensor is")
    found: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        if Path(name).name != name or "\\" in name or not name.isprintable():
            raise ValueError(f"{index}: names the file {name!r}, which is not beside it")
        tensors = read_tensors(index.parent / name)
        for tensor in tensors:
            if names.get(tensor, name) != name or tensor in found:
                raise ValueError(
                    f"{index}: {printable(tensor)} is in {name}, and in {printable(names.get(tensor, name))} by the index"
                )
        found |= tensors
    if missing := [tensor for tensor in names if tensor not in found]:
        raise ValueError(f"{index}: {printable(missing[0])} is in none of its files")
    return found
