"""What a file is, by its first bytes and not by its name: a picture, weights, the file of a run, or something else."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

RUN_FORMAT = "minip2p run "  # the format in the metadata of a run's file begins so, followed by the version
RUN_SOURCES = "which `minip2p generate --record` and `minip2p invert` write"
READ = 512  # bytes that tell what a file is
MAX_HEADER = 100_000_000  # bytes of the header of a safetensors file, as in safetensors
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"8BPS")
JPEG_XL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
# What files begin with, in lower case, that stand in for others -> what they are, and what to do.
STAND_INS: Mapping[bytes, str] = MappingProxyType(
    {
        b"version https://git-lfs": "is a git-lfs pointer, not the file itself: run git lfs pull, or download it",
        b"<!doctype html": "is an HTML page, not the file itself: download it again, signed in where that is needed",
        b"<html": "is an HTML page, not the file itself: download it again, signed in where that is needed",
    }
)
# The same of files that are neither pictures nor weights.
OTHERS: Mapping[bytes, str] = MappingProxyType(
    {
        b'{"': "is JSON text, not the file itself, as a failed download leaves it: download it again",
        b"<?xml": "is XML text, such as an SVG drawing: export it as PNG or download it again",
        b"<svg": "is an SVG drawing: export it as PNG",
        b"%pdf": "is a PDF: export it as PNG",
    }
)


def first_bytes(path: Path) -> bytes:
    """The bytes of a file that tell what it is. Raises OSError."""
    with path.open("rb") as file:
        return file.read(READ)


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so has the header of safetensors, after its length."""
    return start[8:10] == b'{"'


def is_picture(start: bytes) -> bool:
    """Whether a file that begins so is a picture of a usual format, which Pillow may read or not."""
    is_webp = start.startswith(b"RIFF") and start[8:12] == b"WEBP"
    is_phones = start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS + AVIF_BRANDS
    return start.startswith(PICTURE_STARTS + JPEG_XL_STARTS) or is_webp or is_phones


def describe_stand_in(start: bytes) -> str | None:
    """What a file is that begins so and stands in for another, and what to do; None for other files."""
    return describe_text(start, STAND_INS)


def describe_other(start: bytes) -> str | None:
    """What a file is that begins so and is neither a picture nor weights, and what to do; None for unknown files."""
    if not start:
        return "is empty: copy or download it again"
    return describe_stand_in(start) or describe_text(start, OTHERS)


def describe_text(start: bytes, sentences: Mapping[bytes, str]) -> str | None:
    """The sentence for the text that a file begins with."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((sentence for beginning, sentence in sentences.items() if text.startswith(beginning)), None)


def read_header(path: Path) -> dict[str, Any] | None:
    """The header of a safetensors file, whose tensors may be cut off; None where there is none that can be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER else None
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def is_run(path: Path) -> bool:
    """Whether a file is that of a run, of any version of minip2p, whole or not."""
    metadata = (read_header(path) or {}).get("__metadata__")
    return isinstance(metadata, dict) and str(metadata.get("format", "")).startswith(RUN_FORMAT)


def not_a_picture(path: Path) -> str:
    """What a file is that is no picture: the end of a sentence that begins with its name. Raises OSError."""
    start = first_bytes(path)
    if is_safetensors(start):
        return f"is {'the file of a run' if is_run(path) else 'a file of weights (safetensors)'}, not a picture"
    return describe_other(start) or "is not an image that Pillow can read"


def not_a_run(path: Path) -> str:
    """What a file is that is no run's: the end of a sentence that begins with its name. Raises OSError."""
    start = first_bytes(path)
    if is_picture(start):
        return "is a picture, not the file of a run"
    if is_safetensors(start):
        is_whole = read_header(path) is not None
        what = "is a file of weights, not that of a run, " + RUN_SOURCES
        return what if is_whole else "is not a whole safetensors file: copy or download it again"
    return describe_other(start) or f"is neither a picture nor the file of a run, {RUN_SOURCES}"


def broken_safetensors(path: Path, error: Exception) -> ValueError:
    """The error to raise for a safetensors file that cannot be read."""
    return ValueError(f"{path}: not a whole safetensors file ({error}); download or copy it again")
