"""Arguments that name files: what they may be, before anything is loaded. Each function raises ValueError."""

import os
import re
from argparse import Namespace
from pathlib import Path

from PIL import Image

from minip2p.io.contents import first_bytes, is_picture, is_run, not_a_run

RUN_SUFFIX = ".safetensors"  # the suffix of a run's file
PICTURE_SUFFIX = ".png"
# The arguments that name files. A SOURCE may be a prompt as well, and a planner (--by) the address of a server.
PATH_ARGUMENTS = (
    "model",
    "config",
    "vae",
    "lora",
    "embedding",
    "clip",
    "lpips",
    "dino",
    "cases",
    "join",
    "grid",
    "picture",
    "file",
    "mask",
    "region",
    "source",
    "prompts",
    "by",
)
OUTPUT_ARGUMENTS = ("out", "record", "export")
URL = re.compile(r"(?:https?|ftp|file)://\S+", re.IGNORECASE)
HUB_URL = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+?)/?", re.IGNORECASE)
# A source without spaces that begins as a path does, or has a folder or no word before a suffix of letters.
PATH_START = re.compile(r"(\.{1,2}|~)?[/\\]|~[\w.-]*[/\\]|[A-Za-z]:[/\\]")
SUFFIX_END = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,11}")
SOURCE_KINDS = "a prompt, the file of a run (.safetensors) or, with --prompt, a photograph"


def expand_paths(args: Namespace) -> None:
    """Replaces a leading ~ in the arguments that name files. Raises ValueError for a URL and for an empty name."""
    for name in (*PATH_ARGUMENTS, *OUTPUT_ARGUMENTS):
        value = getattr(args, name, None)
        if isinstance(value, list):
            vars(args)[name] = [expand_path(name, text) for text in value]
        elif value is not None:
            vars(args)[name] = expand_path(name, value)


def expand_path(name: str, path: str) -> str:
    """A path with its ~ expanded. name: of the argument.

    Raises ValueError for a URL, an empty name, the ~ of a user without a home, and for a slash after a file's name.
    """
    if not path.strip() and name != "source":  # as of a shell's variable that is not set; a prompt may be empty
        raise ValueError(f"{name} is empty, and must name a file or a folder")
    if path == "-" and name in OUTPUT_ARGUMENTS:
        raise ValueError(f"{name} is -, and files are not written to the standard output: give a folder or a file")
    url = URL.match(path.strip())
    if url is not None and name == "by":
        return path
    if url is None:
        expanded = os.path.expanduser(path)
        if expanded.startswith("~") and (name != "source" or PATH_START.match(path)):
            user = re.split(r"[/\\]", path)[0]
            raise ValueError(f"{path}: the home folder of {user} is unknown; write ./{user} for a file of this name")
        if name in OUTPUT_ARGUMENTS and re.search(rf"({PICTURE_SUFFIX}|{RUN_SUFFIX})[/\\]+$", path, re.IGNORECASE):
            raise ValueError(f"{path}: ends as a folder does and has the name of a file: leave the slash out")
        return expanded
    if name in OUTPUT_ARGUMENTS:
        raise ValueError(f"{path}: is a URL, and files are written to this computer: give a folder or a file")
    if name in ("model", "config", "vae", "lora", "embedding") and (repo := HUB_URL.fullmatch(path.strip())):
        raise ValueError(f"{path}: is a URL: give the name on the hub, {repo[1]}")
    raise ValueError(f"{path}: is a URL, and minip2p opens files: download it first")


def check_source(source: str, with_prompt: bool) -> None:
    """Raises ValueError or FileNotFoundError for a SOURCE that is or looks like a file, and cannot be used as given.

    with_prompt: whether --prompt was given, which a photograph needs.
    """
    is_file = os.path.isfile(source)
    if with_prompt and is_file and is_run(Path(source)):
        raise ValueError(f"{source}: is the file of a run, which has its own prompt: leave --prompt out")
    if with_prompt or (source.endswith(" ") and not is_file):
        return
    if os.path.isdir(source):
        raise ValueError(
            f"{source}: is a folder, and a source is {SOURCE_KINDS}; if it is a prompt, add a space to its end"
        )
    if is_file and is_run(Path(source)):
        return
    if is_file and is_picture(first_bytes(Path(source))):
        raise ValueError(f"{source}: is a picture: describe it with --prompt, or give the file of a run")
    if is_file:
        raise ValueError(f"{source}: {not_a_run(Path(source))}; if it is a prompt, add a space to its end")
    if source.lower().endswith(RUN_SUFFIX):
        raise FileNotFoundError(f"{source}: no such file")
    if looks_like_path(source):
        raise ValueError(
            f"{source}: no such file, and a source is {SOURCE_KINDS}; if it is a prompt, add a space to its end"
        )


def looks_like_path(source: str) -> bool:
    """Whether a source is written as a path: ./cat, x/cat.safetensor, cat.safetensor, cat.JPG."""
    suffix = Path(source).suffix
    is_file_name = bool(SUFFIX_END.fullmatch(suffix)) and (" " not in source or "/" in source or "\\" in source)
    return (
        PATH_START.match(source) is not None
        or is_file_name
        or suffix.lower() in Image.registered_extensions()
        or source.endswith(("/", "\\"))
    )
