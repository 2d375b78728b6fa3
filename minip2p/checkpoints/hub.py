"""Models by their name on the Hugging Face hub, org/name, through huggingface_hub: its cache, token and offline mode.

Only the files that will be read are downloaded: the small ones, and for each component the weights that
`DiffusersFolder` would choose.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minip2p.checkpoints.diffusers_folder import VARIANTS, WEIGHT_SUFFIXES, weights_stem

SMALL_FILES = re.compile(r"(model_index|minip2p)\.json|[^/]+/(config|scheduler_config)\.json|tokenizer(_2)?/[^/]+")
WEIGHT_FOLDERS = ("unet/", "vae/", "text_encoder/", "text_encoder_2/")
# One of these is in the root of each repository: the first in a whole model, the second in a single component (a VAE).
MODEL_INDEX, COMPONENT_CONFIG = "model_index.json", "config.json"


def is_repo_id(location: str) -> bool:
    """Whether a location may be a name on the hub: two segments, and no local folder has the name of the first."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", location) is not None and not Path(location).parent.exists()


def files_to_download(repo_files: Iterable[str], folders: Collection[str]) -> list[str]:
    """Which files of a repository to download: the small ones, and the weights in `folders`.

    repo_files: the paths of all its files. folders: of `WEIGHT_FOLDERS`. The repository may also be a single component,
    with its files in the root; its weights are chosen unless `folders` is empty.
    """
    available = list(repo_files)
    is_component = MODEL_INDEX not in available and COMPONENT_CONFIG in available
    chosen = [name for name in available if SMALL_FILES.fullmatch(name)]
    if is_component:
        chosen.append(COMPONENT_CONFIG)
    for folder in [""] if is_component and folders else folders:
        stem = folder + weights_stem(folder)
        suffix = next((suffix for suffix in WEIGHT_SUFFIXES if stem + suffix in available), None)
        if suffix is None:
            continue
        chosen.append(stem + suffix)
        if suffix.endswith(".json"):
            number, variant = r"-\d+-of-\d+", re.escape(next(v for v in reversed(VARIANTS) if v in suffix))
            # The variant stands before the number of the shard, or after it in older files.
            shard = re.compile(rf"{re.escape(stem)}({variant}{number}|{number}{variant})\.safetensors")
            chosen += filter(shard.fullmatch, available)
    return chosen


def download(name: str, folders: Collection[str] = WEIGHT_FOLDERS) -> Path:
    """Downloads what is missing in the hub's cache and returns the repository's folder there.

    name: org/name. folders: whose weights are needed. If the hub cannot be reached, the cached copy is used.
    Raises ValueError, with one line, if the hub has no such model, or cannot be reached and nothing is cached.
    """

    def choose(repo_files: list[str]) -> list[str]:
        files = files_to_download(repo_files, folders)
        if not any(file.endswith(".json") for file in files):
            raise ValueError(f"{name}: is on the hub, but not a model in diffusers' layout")
        return files

    return download_files(name, choose, (MODEL_INDEX, COMPONENT_CONFIG))


def download_files(name: str, choose: Callable[[list[str]], list[str]], markers: Sequence[str]) -> Path:
    """Downloads the files of a repository that `choose` selects from all of its files; returns the folder in the cache.

    markers: files one of which the cache has if it has the repository; none if any file will do. Raises ValueError as
    `download`.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with quiet_hub():
            repo_files = hub.HfApi().list_repo_files(name)
    except HFValidationError as error:
        raise ValueError(f"{name}: no such folder, and not a valid name on the hub ({one_line(error)})") from None
    except Exception as error:  # offline mode or a failed connection, of any library's class
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403, 404):
            raise ValueError(f"{name}: no such folder, and the hub has no such model that you may read") from None
        return cached_folder(name, error, markers)
    files = choose(repo_files)
    try:
        return Path(hub.snapshot_download(name, allow_patterns=files))
    except Exception as error:
        raise ValueError(f"{name}: the download broke off; run it again to resume it ({one_line(error)})") from None


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silences huggingface_hub, which prints a line for every retry; the caller reports the final failure."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def cached_folder(name: str, error: Exception, markers: Sequence[str]) -> Path:
    """The folder of what the cache has of a repository, complete or not, if it has one of the `markers`, where given.

    error: why the hub cannot be asked; it becomes part of the ValueError that is raised if the cache has nothing.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    for marker in markers:
        file = hub.try_to_load_from_cache(name, marker)
        if isinstance(file, str):
            return Path(file).parent
    if not markers:
        try:
            return Path(hub.snapshot_download(name, local_files_only=True))
        except LocalEntryNotFoundError as missing:
            incomplete = getattr(missing, "snapshot_path", None)  # what there is of it
        if incomplete is not None:
            return Path(incomplete)
    raise ValueError(
        f"{name}: no such folder, not in the hub's cache, and the hub cannot be reached ({one_line(error)})"
    )


def one_line(error: Exception) -> str:
    """The message of an error as one short line."""
    return " ".join(str(error).split())[:200]
