"""PNG files with their generation parameters: checked before the work starts, written all together or not at all."""

import re
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minip2p.io.files import atomic_write, temporary_name

PngFile = tuple[Path, Image.Image, str]  # the path, the image, and the text of its PNG chunk `parameters`


def slug(text: str, max_length: int = 40) -> str:
    """Text as part of a file name: its letters and digits in lower case, joined by hyphens."""
    return "-".join(re.findall(r"\w+", text.lower()))[:max_length].rstrip("-") or "picture"


def check_writable(paths: Iterable[Path]) -> None:
    """Raises OSError if one of these files could not be written. Creates no file and no folder."""
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder, and a file of that name was to be written")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise NotADirectoryError(f"{path}: {folder} is not a folder")
        try:
            temporary_name(path).exists()  # raises for a name that is too long
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def write_pngs(files: Iterable[PngFile]) -> None:
    """Writes all of the images or none: first each to a temporary file in its folder, then all are renamed."""
    with ExitStack() as stack:
        for path, image, parameters in files:
            info = PngInfo()
            info.add_text("parameters", parameters)
            image.save(stack.enter_context(atomic_write(path)), "PNG", pnginfo=info)
