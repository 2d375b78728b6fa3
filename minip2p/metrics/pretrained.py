"""Loads the networks of metrics, which are the user's, with transformers; safetensors only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def named_errors(where: str | Path, kind: str) -> Iterator[None]:
    """Errors of transformers as a ValueError with one line. kind: what was to be read, as in "a ViT"."""
    try:
        yield
    except Exception as error:  # transformers' errors have no common class, and their texts may fill pages
        raise ValueError(f"{where}: cannot be read as {kind} ({' '.join(str(error).split())[:200]})") from None


def load_network(where: str | Path, kind: str, load: Callable[..., Any], **options: Any) -> Any:
    """A network in evaluation mode. load: the `from_pretrained` of its class. options: further arguments of it.

    Raises ValueError, with one line, unless the file has all weights in their shapes.
    """
    with named_errors(where, kind):
        model, info = load(where, output_loading_info=True, use_safetensors=True, **options)
    if bad_keys := sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]})):
        raise ValueError(
            f"{where}: {bad_keys[0]} is missing or has another shape; and {len(bad_keys) - 1} more weights"
        )
    return model.eval()
