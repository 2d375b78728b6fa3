"""Where an adapter's file is: a LoRA or an embedding, given as a file, as a folder or by its name on the hub."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from minip2p.checkpoints.file_formats import CONVERT, PICKLED_SUFFIXES, check_format
from minip2p.checkpoints.hub import download_files, is_repo_id

PEFT_FILE = "adapter_model.safetensors"
# The names that diffusers and PEFT give to the file in a folder.
LORA_NAMES = ("pytorch_lora_weights.safetensors", PEFT_FILE)
EMBEDDING_NAMES = ("learned_embeds.safetensors",)
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT, next to its file
# PEFT saves the adapter of each network in a folder of its own: network -> its file.
PEFT_PARTS: Mapping[str, str] = MappingProxyType(
    {network: f"{network}/{PEFT_FILE}" for network in ("unet", "text_encoder", "text_encoder_2")}
)

SAFETENSORS = ".safetensors"
FILE_ON_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)/(?P<file>.+\.safetensors)")  # org/name/file.safetensors


def find_lora(where: str | Path) -> dict[str, Path]:
    """The files of a LoRA, by the networks that they change: "unet", …, or "" where the names of the tensors say it.

    where: as of `find_adapter`; or a folder, or a name on the hub, with the folders that PEFT writes for each network.
    Raises FileNotFoundError or ValueError with one line.
    """
    file = find_adapter(where, (*LORA_NAMES, *PEFT_PARTS.values()), "LoRA")
    if file.name != PEFT_FILE or file.parent.name not in PEFT_PARTS:
        return {"": file}
    if Path(where).expanduser() in (file, file.parent):
        return {file.parent.name: file}
    root = file.parent.parent
    parts = {network: root / part for network, part in PEFT_PARTS.items() if (root / part).is_file()}
    for part in parts.values():
        check_format(part)
    return parts


def find_adapter(where: str | Path, names: Sequence[str], kind: str) -> Path:
    """The safetensors file of an adapter.

    where: a file; a folder that has a file of one of the `names`, or a single safetensors file; or org/name or
    org/name/file.safetensors on the hub.
    kind: what errors call the adapter. Nothing is read of the file but its first bytes.
    Raises FileNotFoundError or ValueError with one line.
    """
    path = Path(where).expanduser()

    def choose(files: Sequence[str]) -> str:
        return choose_file(str(where), files, names, kind)

    if path.is_dir():
        path = path / choose(list_files(path))
    elif isinstance(where, str) and is_repo_id(where) and path.suffix not in (SAFETENSORS, *PICKLED_SUFFIXES):
        path = download_adapter(where, choose)
    elif isinstance(where, str) and (match := FILE_ON_HUB.fullmatch(where)) and is_repo_id(match["name"]):
        path = download_adapter(match["name"], lambda files: named_file(where, files, match["file"]))
    elif not path.is_file():
        raise FileNotFoundError(f"{where}: no such file: there is no {kind} of this name")
    check_format(path)
    return path


def list_files(folder: Path) -> list[str]:
    """The names of the files in a folder, and those in the folders of PEFT in it."""
    parts = [part for part in PEFT_PARTS.values() if (folder / part).is_file()]
    return [*sorted(file.name for file in folder.iterdir()), *parts]


def choose_file(where: str, files: Sequence[str], names: Sequence[str], kind: str) -> str:
    """The file of an adapter out of the files of a folder or a repository. Raises ValueError where it is not clear."""
    for name in names:
        if name in files:
            return name
    safe = [file for file in files if file.endswith(SAFETENSORS) and "/" not in file]
    if len(safe) == 1:
        return safe[0]
    if safe:
        raise ValueError(f"{where}: has {len(safe)} safetensors files, {', '.join(safe[:4])}, …: give the file itself")
    pickled = [file for file in files if file.endswith(PICKLED_SUFFIXES)]
    if pickled:
        raise ValueError(f"{where}: has only pickled files ({pickled[0]}), which are never read: {CONVERT}")
    raise ValueError(f"{where}: has no {kind} in it: no file ends in {SAFETENSORS}")


def named_file(where: str, files: Sequence[str], file: str) -> str:
    """The file of a repository that the user named. Raises ValueError if it is not one of the `files`."""
    if file not in files:
        raise ValueError(
            f"{where}: no such file, and the hub has none of this name in {where.removesuffix('/' + file)}"
        )
    return file


def download_adapter(name: str, choose: Callable[[Sequence[str]], str]) -> Path:
    """Downloads an adapter from the hub and returns its file. name: org/name. choose: its file, out of all files."""
    chosen: list[str] = []

    def needed(files: list[str]) -> list[str]:
        chosen.append(choose(files))
        parts = [*PEFT_PARTS.values()] if chosen[0] in PEFT_PARTS.values() else chosen
        settings = [str(PurePosixPath(file).with_name(ADAPTER_CONFIG)) for file in parts]
        return [file for file in (*parts, *settings) if file in files]

    folder = download_files(name, needed, markers=())
    if not chosen:  # the hub cannot be reached: what is in its cache
        files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
        chosen.append(choose(files))
    return folder / chosen[0]
