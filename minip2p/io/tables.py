"""TODO: describe."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from minip2p.io.files import atomic_write

Rows = Sequence[Mapping[str, Any]]


def to_csv(rows: Rows) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_parquet(path: Path, rows: Rows) -> None:
    """By pyarrow."""
    with atomic_write(path) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), partial)
