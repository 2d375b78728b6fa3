"""Where an adapter's file is: a LoRA or an embedding, given as a file, as a folder or by its name on the hub."""

from collections.abc import Sequence
from pathlib import Path

from minip2p.checkpoints.file_formats import CONVERT, PICKLED_SUFFIXES, check_format
from minip2p.checkpoints.hub import download_files, is_repo_id

# The names that diffusers and PEFT give to the file in a folder.
LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
EMBEDDING_NAMES = ("learned_embeds.safetensors",)
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT, next to adapter_model.safetensors

SAFETENSORS = ".safetensors"


def find_adapter(where: str | Path, names: Sequence[str], kind: str) -> Path:
    """The safetensors file of an adapter.

    where: a file; a folder that has a file of one of the `names`, or a single safetensors file; or org/name on the hub.
    kind: what errors call the adapter. Nothing is read of the file but its first bytes.
    Raises FileNotFoundError or ValueError with one line.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        path = path / choose_file(str(path), sorted(file.name for file in path.iterdir()), names, kind)
    elif isinstance(where, str) and is_repo_id(where) and path.suffix not in (SAFETENSORS, *PICKLED_SUFFIXES):
        path = download_adapter(where, names, kind)
    elif not path.is_file():
        raise FileNotFoundError(f"{where}: no such file: there is no {kind} of this name")
    check_format(path)
    return path


def choose_file(where: str, files: Sequence[str], names: Sequence[str], kind: str) -> str:
    """The file of an adapter out of the files of a folder or a repository. Raises ValueError where it is not clear."""
    safe = [file for file in files if file.endswith(SAFETENSORS) and "/" not in file]
    for name in names:
        if name in safe:
            return name
    if len(safe) == 1:
        return safe[0]
    if safe:
        raise ValueError(f"{where}: has {len(safe)} safetensors files, {', '.join(safe[:4])}, …: give the file itself")
    pickled = [file for file in files if file.endswith(PICKLED_SUFFIXES)]
    if pickled:
        raise ValueError(f"{where}: has only pickled files ({pickled[0]}), which are never read: {CONVERT}")
    raise ValueError(f"{where}: has no {kind} in it: no file ends in {SAFETENSORS}")


def download_adapter(name: str, names: Sequence[str], kind: str) -> Path:
    """Downloads an adapter from the hub and returns its file. name: org/name."""
    chosen: list[str] = []

    def choose(files: list[str]) -> list[str]:
        chosen.append(choose_file(name, files, names, kind))
        return [file for file in (chosen[0], ADAPTER_CONFIG) if file in files]

    folder = download_files(name, choose, markers=())
    if not chosen:  # the hub cannot be reached: what is in its cache
        chosen.append(choose_file(name, sorted(file.name for file in folder.iterdir()), names, kind))
    return folder / chosen[0]
