"""Models by their name on the hub, org/name, through huggingface_hub: its cache, its token, its offline switches.

Only what is read is downloaded: the small files, and of each part's weights the ones that `Folder` would take.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minip2p.checkpoints.diffusers_folder import STEMS, VARIANTS, WEIGHT_SUFFIXES

SMALL_FILES = re.compile(r"(model_index|minip2p)\.json|[^/]+/(config|scheduler_config)\.json|tokenizer(_2)?/[^/]+")


PARTS = ("unet/", "vae/", "text_encoder/", "text_encoder_2/")


MARKER_FILES = ("model_index.json", "config.json")  # of a model, and of a part of one alone, as VAEs are


def is_repo_id(where: str) -> bool:
    """Whether it may be a name on the hub: two parts, of which the first is no folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", where) is not None and not Path(where).parent.exists()


def files_to_download(files: Iterable[str], parts: Collection[str]) -> list[str]:
    """Those of a repository's files that a model is loaded from: the small ones, and the weights of these parts."""
    there = list(files)
    alone = MARKER_FILES[0] not in there and MARKER_FILES[1] in there
    found = [name for name in there if SMALL_FILES.fullmatch(name) or (alone and name == MARKER_FILES[1])]
    for part in [""] if alone and parts else parts:
        stem = part + STEMS[part.startswith("text_encoder")]
        kind = next((kind for kind in WEIGHT_SUFFIXES if stem + kind in there), None)
        if kind is not None:
            number, variant = r"-\d+-of-\d+", re.escape(next(v for v in reversed(VARIANTS) if v in kind))
            # A variant's name stands before it, or in former files behind.
            shard = rf"{re.escape(stem)}({variant}{number}|{number}{variant})\.safetensors"
            several = [name for name in there if kind.endswith(".json") and re.fullmatch(shard, name)]
            found += [stem + kind, *several]
    return found


def download(name: str, parts: Collection[str] = PARTS) -> Path:
    """The folder of a repository in the hub's cache, where these parts of it are now. Raises ValueError with one line
    where the hub does not have it or cannot be reached, and the cache has it not either."""
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with quiet_hub():
            files = files_to_download(hub.HfApi().list_repo_files(name), parts)
    except HFValidationError as error:
        raise ValueError(f"{name}: no such folder, and no name on the hub ({one_line(error)})") from None
    except Exception as error:  # offline, or of a connection, whichever library makes it
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403, 404):
            raise ValueError(f"{name}: no such folder, and no model of the hub that you may read") from None
        return cached_folder(name, error)
    if not any(file.endswith(".json") for file in files):
        raise ValueError(f"{name}: on the hub, but not a model in diffusers' layout")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=files))
    except Exception as error:
        raise ValueError(f"{name}: the download broke off; tried again, it goes on ({one_line(error)})") from None


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without a line of the hub's own for each time that it tries again: in the end there is one of ours."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def cached_folder(name: str, error: Exception) -> Path:
    """The folder of what the cache has of it, whole or not. Raises ValueError where that is nothing, by the error."""
    import huggingface_hub as hub

    for sign in MARKER_FILES:
        file = hub.try_to_load_from_cache(name, sign)
        if isinstance(file, str):
            return Path(file).parent
    raise ValueError(
        f"{name}: no such folder, not in the hub's cache, and the hub cannot be reached ({one_line(error)})"
    )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
