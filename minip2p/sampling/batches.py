"""How rows are divided into batches: as few as possible, of even size."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

MAX_BATCH = 8  # pictures, or targets of an edit, that run at once


def even_chunks(rows: Sequence[T], most: int) -> list[Sequence[T]]:
    """The rows in as few chunks of at most `most` as possible; their sizes differ by 1 at most."""
    count = -(-len(rows) // most)
    ends = [len(rows) - len(rows) * n // count for n in range(count, -1, -1)] if rows else []
    return [rows[a:b] for a, b in pairwise(ends)]
