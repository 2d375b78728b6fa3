"""Reading text, JSON and TOML as any system writes them, and writing files atomically: a reader sees the old file or
the new one, never half of one."""

import json
import os
import platform
import re
import secrets
import shutil
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minip2p.io.contents import READ, describe_stand_in

STALE = 3600.0  # seconds after which a temporary file is one that a killed process left

# The text files of a tokenizer, which transformers reads.
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def shipped_weights(name: str) -> Path:
    """The folder of weights that ships with minip2p under this name ("tiny", "judge", "bench").

    An installed package has it as `minip2p/weights/<name>`. A checkout has the same path through a symbolic link; where
    the file system has no links, the folder `weights/` next to the package is used.
    """
    package = Path(__file__).parents[1]
    inside, next_to_package = package / "weights" / name, package.parent / "weights" / name
    return inside if inside.is_dir() else next_to_package


def read_text(path: Path) -> str:
    """Reads UTF-8 text as editors of any system write it. A byte-order mark is dropped, and each line ends in "\\n".

    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if sentence := describe_stand_in(content[:READ]):
        raise ValueError(f"{path}: {sentence}")
    return decode_text(content, str(path))


def decode_text(content: bytes, location: str) -> str:
    """The text of a file from its bytes, as `read_text` returns it. location: what an error calls the file.

    Raises ValueError for UTF-16, UTF-32 and whatever else is not UTF-8.
    """
    if bytes(4) in content:  # no character of any encoding has four zeros
        raise ValueError(f"{location}: is not text, it has zero bytes; copy or download it again")
    encoding = json.detect_encoding(content)  # by a byte-order mark, or by the zeros next to ASCII characters
    if not encoding.startswith("utf-8"):
        raise ValueError(f"{location}: is {encoding[:6].upper()} text; save it as UTF-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{location}: is not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}); save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, location: str) -> Any:
    """A JSON value from text. location: what an error calls the text's file. Raises ValueError with one line."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # not JSON, endless numbers, too deeply nested
        raise ValueError(f"{location}: cannot be read as JSON ({error})") from None


def read_json_value(path: Path) -> Any:
    """Reads a JSON file of any value. Raises FileNotFoundError or ValueError with one line that names the file."""
    return parse_json(read_text(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises FileNotFoundError or ValueError with one line that names the file."""
    try:
        content = read_json_value(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; is {path.parent.parent} a diffusers model folder?") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file. Raises FileNotFoundError or ValueError with one line that names the file."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as TOML ({' '.join(str(error).split())})") from None


@contextmanager
def plain_text_folder(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yields a folder for a library that reads these text files and accepts only UTF-8 without byte-order marks.

    It is the folder itself if its files are plain, otherwise a temporary folder with plain copies of these files alone.
    Files that do not exist are skipped. Raises ValueError, with one line that names the file, as `read_text` does.
    """
    texts = {name: read_text(folder / name).encode() for name in names if (folder / name).is_file()}
    if all((folder / name).read_bytes() == text for name, text in texts.items()):
        yield folder
        return
    with TemporaryDirectory() as temporary:
        for name, text in texts.items():
            (Path(temporary) / name).write_bytes(text)
        yield Path(temporary)


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
    except OSError as error:
        if error.filename is None and error.errno is not None:  # as from a full disk
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary path beside `folder`, for a new folder that is renamed to it at the end.

    If the body raises, the temporary folder is removed. Raises FileExistsError if there is something of that name.
    """
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder}: already exists: choose another name for the folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_name(folder)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """A new path to write to before the result is renamed to `path`. No other process of any machine writes to it."""
    host = re.sub(r"[^A-Za-z0-9-]", "", platform.node())[:32]
    return path.with_name(f".{path.name}-{host}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def write_files(files: Iterable[tuple[Path, bytes]]) -> None:
    """Writes all of the files or none: first each to a temporary file in its folder, then all are renamed."""
    with ExitStack() as stack:
        for path, content in files:
            stack.enter_context(atomic_write(path)).write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, with the same line ends on every system."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically."""
    write_text(path, json.dumps(dict(fields), indent=2) + "\n")


def claim_results_folder(file: Path, results: Path, settings: Mapping[str, Any], description: str) -> None:
    """Claims a folder for one experiment, so that results of different settings are never mixed.

    The first call writes the settings to `file`. A later call with the same settings succeeds: the experiment is
    resumed, or another process of it works in the folder. Temporary files that a killed process left behind are removed
    when they are an hour old.

    file: the settings file; its folder is the one to claim. results: the folder of the results.
    settings: all that the results depend on, as JSON values. description: what the error calls the folder's contents.
    Raises ValueError if the folder belongs to other settings, or has results but no settings file.
    """
    if not file.exists() and not results.exists():
        remove_stale(file.parent.glob(f".{file.name}-*.partial"))
        return write_text(file, settings_text(settings))
    check_results_folder(file, settings, description)
    remove_stale(file.parent.rglob(".*.partial"))


def check_results_folder(file: Path, settings: Mapping[str, Any], description: str) -> None:
    """Raises ValueError if a folder of results belongs to other settings; the arguments: `claim_results_folder`."""
    if not has_settings(file, settings_text(settings)):
        raise ValueError(
            f"{file.parent}: holds {description}{differing_fields(file, settings)}: choose another folder, or remove it"
        )


def remove_stale(files: Iterable[Path]) -> None:
    """Removes those of the files that were last written more than an hour ago. A neighbour may remove them as well."""
    for file in files:
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > STALE:
                file.unlink()


def settings_text(settings: Any) -> str:
    """The settings of an experiment as they are written to its settings file."""
    return json.dumps(settings, indent=1, sort_keys=True) + "\n"


def has_settings(file: Path, text: str) -> bool:
    """Whether a settings file holds these settings, with the line ends and the indentation of any system."""
    try:
        return settings_text(read_json_value(file)) == text
    except (OSError, ValueError, RecursionError):
        return False


def differing_fields(file: Path, settings: Mapping[str, Any]) -> str:
    """The names of the settings that differ from those in the file, or why it cannot be read: text for an error.

    A setting that is a mapping in both has the names of its own settings that differ, as grid.split.
    """
    try:
        differ = different_names(read_json_value(file), json.loads(json.dumps(settings)))
    except ValueError as error:
        return f" ({error})"
    except (OSError, AttributeError, RecursionError):
        return ""
    return f" (of other {', '.join(differ)})" if differ else ""


def different_names(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The names of the values that differ in two mappings, in the mappings in them as well: "name.name"."""
    names = []
    for name in sorted({*first.keys(), *second.keys()}):
        a, b = first.get(name), second.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += different_names(a, b, f"{prefix}{name}.")
        elif a != b:
            names.append(prefix + name)
    return names
