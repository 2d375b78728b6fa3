"""Tables of results as CSV text and Parquet files."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from minip2p.io.files import atomic_write

Rows = Sequence[Mapping[str, Any]]  # one mapping a row: column -> value


def to_csv(rows: Rows) -> str:
    """CSV with a header line. The columns are those of the first row; there must be at least one row."""
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_parquet(path: Path, rows: Rows) -> None:
    """Writes a Parquet file with pyarrow, atomically."""
    with atomic_write(path) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), partial)
