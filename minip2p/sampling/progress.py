"""How long runs show their progress: a function that wraps the steps of a loop."""

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def progress_bar(steps: Iterable[Any]) -> Iterable[Any]:
    """A progress bar; silent where the output is not a terminal."""
    from tqdm import tqdm

    return tqdm(steps, disable=None, leave=False, unit="step")
