"""Pictures into PNG files: with the parameters that make them again, checked beforehand, whole or not at all."""

import re
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minip2p.io.files import atomic_write, temporary_name

PngFile = tuple[Path, Image.Image, str]  # where, what, and the text of its chunk `parameters`


def slug(text: str, most: int = 40) -> str:
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
            temporary_name(path).exists()  # of a name that is too long, an error
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def write_pngs(files: Iterable[PngFile]) -> None:
    """Writes all of the pictures or none: each in its folder under a temporary name, then all are renamed."""
    with ExitStack() as stack:
        for path, picture, text in files:
            info = PngInfo()
            info.add_text("parameters", text)
            picture.save(stack.enter_context(atomic_write(path)), "PNG", pnginfo=info)
