"""Pictures into PNG files: with the parameters that make them again, checked beforehand, whole or not at all."""

import json
import re
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minip2p.files import partial_name, whole
from minip2p.trajectory import Trajectory

File = tuple[Path, Image.Image, str]  # where, what, and the text of its chunk `parameters`


def parameters(run: Trajectory, **more: Any) -> str:
    """What a run was made with, in the form that the field's tools write and read:

        the prompt
        Negative prompt: what the picture should not show (where there is one)
        Steps: 50, Sampler: DDIM, CFG scale: 4.0, Seed: 1, Size: 128x96, Model: tiny, …

    Size is width x height, as there; a VAE or a LoRA besides stands after Model. Of an edit, Source is the prompt it
    began from. more: further settings. A value that has a comma, a colon, a quote or a line break in it is a JSON
    string.
    """
    stride = run.parts.vae.stride
    rows, columns = (side * stride for side in run.latents.shape[-2:])
    settings = {"Steps": run.steps, "Sampler": "DDIM", "CFG scale": run.guidance, "Seed": run.seed,
                "Size": f"{columns}x{rows}", **run.parts.made.said}  # fmt: skip
    if run.seed is None:  # it began from a photograph, or from latents that were given
        del settings["Seed"]
    if run.parts.dtype != torch.float32:  # other numbers, another picture
        settings["Dtype"] = str(run.parts.dtype).removeprefix("torch.")
    if run.source is not None:
        settings["Source"] = run.source.prompt
    settings |= more
    negative = [f"Negative prompt: {run.negative}"] if run.negative else []
    return "\n".join([run.prompt, *negative, ", ".join(f"{name}: {quoted(value)}" for name, value in settings.items())])


def quoted(value: Any) -> str:
    """A value as it stands in the last line."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def file_name(text: str, most: int = 40) -> str:
    """A text as part of a file's name: its letters and digits, joined by hyphens."""
    return "-".join(re.findall(r"\w+", text.lower()))[:most].rstrip("-") or "picture"


def check_writable(paths: Iterable[Path]) -> None:
    """Raises OSError where a file could not be written there. Leaves nothing behind and makes no folder."""
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder, and a file of that name was to be written")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise NotADirectoryError(f"{path}: {folder} is not a folder")
        try:
            partial_name(path).exists()  # of a name that is too long, an error
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def write(files: Iterable[File]) -> None:
    """Writes all of the pictures or none: each in its folder under a temporary name, then all are renamed."""
    with ExitStack() as stack:
        for path, picture, text in files:
            info = PngInfo()
            info.add_text("parameters", text)
            picture.save(stack.enter_context(whole(path)), "PNG", pnginfo=info)
