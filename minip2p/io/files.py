"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def shipped_weights(name: str) -> Path:
    """The folder of weights that ship with minip2p: inside of the package, in a checkout by a link to `weights`; beside
    it where the system has no links."""
    package = Path(__file__).parents[1]
    return next(
        (p for p in (package / "weights" / name, package.parent / "weights" / name) if p.is_dir()),
        package.parent / "weights" / name,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or one clear line about what is wrong with it."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; is {path.parent.parent} a diffusers model folder?") from None
    except (OSError, ValueError, RecursionError) as error:  # no text, no JSON, numbers without an end, too deep
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(given).__name__}")
    return given


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary name in the file's folder, made if need be, to write to; at the end the file gets its own name.
    Where something goes wrong, nothing is left."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, and a file of that name was to be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_name(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}-{os.getpid()}.partial")


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(dict(fields), indent=2) + "\n")


def claim_results_folder(file: Path, results: Path, what: Mapping[str, Any], holds: str) -> None:
    """Writes what a folder is for into a file in it. Raises ValueError where it is for something else, or where nothing
    says what the results in it are of. holds: what to call it."""
    text = json.dumps(what, indent=1, sort_keys=True) + "\n"
    if not file.exists() and not results.exists():
        return write_text(file, text)
    if not file.exists() or file.read_bytes() != text.encode():
        raise ValueError(
            f"{file.parent}: holds {holds}{differing_fields(file, what)}: choose another folder, or remove it"
        )
    for stale in file.parent.rglob(".*.partial"):  # of one that was killed
        stale.unlink()


def differing_fields(file: Path, what: Mapping[str, Any]) -> str:
    """Which of what a folder was claimed for is not the same now, in words."""
    try:
        before = json.loads(file.read_bytes())
        differ = [name for name in sorted(what) if before.get(name) != json.loads(json.dumps(what[name]))]
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return f" (of other {', '.join(differ)})" if differ else ""
