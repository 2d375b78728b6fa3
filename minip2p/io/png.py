"""PNG files with their generation parameters: checked before the work starts, written all together or not at all.

The parameters of a PNG are read as well.
"""

import re
import tempfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minip2p.io.decode import MAX_PIXELS, open_file
from minip2p.io.files import temporary_name, write_files

PngFile = tuple[Path, Image.Image, str]  # the path, the image, and the text of its PNG chunk `parameters`

# Text chunks of other tools' PNGs, and what they hold.
OTHER_CHUNKS: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "a workflow of ComfyUI",
        "workflow": "a workflow of ComfyUI",
        "invokeai_metadata": "settings of InvokeAI",
        "sd-metadata": "settings of InvokeAI",
        "Dream": "settings of InvokeAI",
        "Comment": "a comment, as of NovelAI,",
    }
)


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
    """Writes all of the images or none, see `write_files`."""
    write_files((path, encode(image, parameters)) for path, image, parameters in files)


def encode(image: Image.Image, parameters: str) -> bytes:
    """The content of a PNG file. parameters: the text of its chunk `parameters`."""
    info, content = PngInfo(), BytesIO()
    info.add_text("parameters", parameters)
    image.save(content, "PNG", pnginfo=info)
    return content.getvalue()


def read_parameters(file: Path, max_pixels: int = MAX_PIXELS) -> str:
    """The text chunk `parameters` of a PNG, which may follow its pixels, so they are decoded.

    Raises ValueError, with one line that names the file, where there is none, and for a file that is no PNG, is broken
    or has more pixels.
    """
    try:
        with file.open("rb") as opened, open_file(opened, max_pixels, ("PNG",)) as image:
            image.load()
            chunks = {name: value for name, value in image.info.items() if isinstance(value, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    if "parameters" in chunks:
        return chunks["parameters"]
    for name, what in OTHER_CHUNKS.items():
        if name in chunks:
            raise ValueError(f"{file}: has {what} and no settings in A1111's form, which are read")
    raise ValueError(f"{file}: has no settings: its text chunk `parameters` is missing, which some programs remove")
