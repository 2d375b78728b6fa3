"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a temporary name in the file's folder, made if need be, to write to; at the end the file gets its own name.
    Where something goes wrong, nothing is left."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, and a file of that name was to be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}-{os.getpid()}.partial")


def write_text(path: Path, text: str) -> None:
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
