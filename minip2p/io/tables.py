"""Tables of results as CSV text."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]  # one mapping a row: column -> value


def to_csv(rows: Rows) -> str:
    """CSV with a header line. The columns are those of the first row; there must be at least one row."""
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
