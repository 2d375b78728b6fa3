"""What the server remembers: runs, photographs, and what was computed of them. The least recently used goes first."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from minip2p.sampling.trajectory import Trajectory
from minip2p.web.recipes import Recipe

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RunEntry:
    """A run with what the page gets of it.

    json: what the page is told. files: its PNG files, and those of its sources that its recipe needs, by their names.
    original: the photograph, 3 H W, where there was one.
    """

    run: Trajectory = field(repr=False)
    recipe: Recipe = field(repr=False)
    json: dict[str, Any]
    files: Mapping[str, bytes] = field(repr=False)
    original: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph as the model takes it. png: the same as a file."""

    pixels: Tensor = field(repr=False)
    png: bytes = field(repr=False)


class Shelf(Generic[T]):
    """Values by ids that the server makes; at most `size` of them. Threads may share it."""

    def __init__(self, size: int):
        self.size = size
        self.values: OrderedDict[str, T] = OrderedDict()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: T, name: str | None = None) -> str:
        """Puts a value on the shelf under a new id, which is returned, or under a name."""
        name = new_id() if name is None else name
        with self.lock:
            self.values[name] = value
            self.values.move_to_end(name)
            while len(self.values) > self.size:
                self.values.popitem(last=False)
        return name

    def get(self, name: str) -> T | None:
        """A value, which then is the one that was used last; None if there is none of that id."""
        with self.lock:
            if name in self.values:
                self.values.move_to_end(name)
            return self.values.get(name)


def new_id() -> str:
    """An id that cannot be guessed: who knows it may read what it stands for."""
    return secrets.token_urlsafe(12)
