"""Reading JSON and writing files atomically: a reader sees the old file or the new one, never half of one."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def shipped_weights(name: str) -> Path:
    """The folder of weights that ships with minip2p under this name ("tiny", "judge", "bench").

    An installed package has it as `minip2p/weights/<name>`. A checkout has the same path through a symbolic link; where
    the file system has no links, the folder `weights/` next to the package is used.
    """
    package = Path(__file__).parents[1]
    inside, next_to_package = package / "weights" / name, package.parent / "weights" / name
    return inside if inside.is_dir() else next_to_package


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises FileNotFoundError or ValueError with one line that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; is {path.parent.parent} a diffusers model folder?") from None
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, endless numbers, too deeply nested
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder to write to, and renames it to `path` at the end.

    Creates the folder if necessary. If the body raises, the temporary file is removed and `path` stays as it was.
    Raises IsADirectoryError if `path` is a folder.
    """
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
    """The path that this process writes to before it renames the result to `path`."""
    return path.with_name(f".{path.name}-{os.getpid()}.partial")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically."""
    write_text(path, json.dumps(dict(fields), indent=2) + "\n")


def claim_results_folder(file: Path, results: Path, settings: Mapping[str, Any], description: str) -> None:
    """Claims a folder for one experiment, so that results of different settings are never mixed.

    The first call writes the settings to `file`. A later call with the same settings succeeds (the experiment is
    resumed) and removes temporary files that a killed process left behind.

    file: the settings file; its folder is the one to claim. results: the folder of the results.
    settings: all that the results depend on, as JSON values. description: what the error calls the folder's contents.
    Raises ValueError if the folder belongs to other settings, or has results but no settings file.
    """
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    if not file.exists() and not results.exists():
        for stale in file.parent.glob(f".{file.name}-*.partial"):
            stale.unlink()
        return write_text(file, text)
    if not file.exists() or file.read_bytes() != text.encode():
        raise ValueError(
            f"{file.parent}: holds {description}{differing_fields(file, settings)}: choose another folder, or remove it"
        )
    for stale in file.parent.rglob(".*.partial"):
        stale.unlink()


def differing_fields(file: Path, settings: Mapping[str, Any]) -> str:
    """The names of the settings that differ from those in the file, as text for an error message; "" if unknown."""
    try:
        stored = json.loads(file.read_bytes())
        differ = [name for name in sorted(settings) if stored.get(name) != json.loads(json.dumps(settings[name]))]
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return f" (of other {', '.join(differ)})" if differ else ""
