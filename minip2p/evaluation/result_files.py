"""The files of a benchmark: the figures and the picture of each case by each method.

Each has a file of its own, so that a benchmark that was killed continues, and finished cases are not run again.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from minip2p.io import png
from minip2p.io.files import claim_results_folder, read_json_value, write_text
from minip2p.io.images import to_pil
from minip2p.sweeps.shards import check_join, copy_files, refuse_unfinished
from minip2p.validation import is_finite

DESCRIPTION = "the benchmark of other cases or another model"

Row = Mapping[str, Any]


class AnyCase(Protocol):
    """What the files of a case depend on."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class ResultFiles:
    """The files of a benchmark in a folder. metrics: that a row may have. required: those that it must have."""

    folder: Path
    metrics: tuple[str, ...]
    required: frozenset[str]

    def row_file(self, case: AnyCase, method: str) -> Path:
        """The file with the figures of a case by a method."""
        return self.folder / "rows" / method / f"{case.name}.json"

    def picture_file(self, case: AnyCase, method: str) -> Path:
        """The file with the edited picture of a case by a method."""
        return self.folder / "pictures" / method / f"{case.name}.png"

    def is_done(self, case: AnyCase, method: str) -> bool:
        """Whether a case has its figures and its picture."""
        return self.row_file(case, method).exists() and self.picture_file(case, method).exists()

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Claims the folder for these settings. Raises ValueError if it holds other results."""
        claim_results_folder(*self.place(settings))

    def place(self, settings: Mapping[str, Any]) -> tuple[Path, Path, Mapping[str, Any], str]:
        """The arguments of `claim_results_folder`."""
        return self.folder / "bench.json", self.folder / "rows", settings, DESCRIPTION

    def join(
        self, folders: Sequence[Path], settings: Mapping[str, Any], results: Sequence[tuple[AnyCase, str]]
    ) -> None:
        """Claims the folder, and copies results, each a case by a method, from others where they are finished.

        Raises ValueError for a folder of other settings, and if a result is finished nowhere; then it writes nothing.
        """
        check_join(*self.place(settings), folders)
        places = [self, *(replace(self, folder=folder) for folder in folders)]
        sources = [next((files for files in places if files.is_done(*result)), None) for result in results]
        pairs = list(zip(results, sources, strict=True))
        unfinished = [f"case {case.name} by {method}" for (case, method), source in pairs if source is None]
        refuse_unfinished(self.folder, unfinished, len(results))
        self.claim(settings)
        for result, source in pairs:
            if source is not None and source is not self:
                names = [file(*result).relative_to(self.folder) for file in (self.picture_file, self.row_file)]
                copy_files(source.folder, self.folder, names)

    def write(self, case: AnyCase, method: str, figures: Mapping[str, float], picture: Tensor, text: str) -> None:
        """Writes the figures and the picture, 3 H W, of a case. text: what the picture says of itself."""
        values = {key: None if math.isnan(value) else value for key, value in figures.items()}
        png.write_pngs([(self.picture_file(case, method), to_pil(picture), text)])
        row = {"case": case.name, "kind": case.kind, "method": method, **values}
        write_text(self.row_file(case, method), json.dumps(row) + "\n")

    def read(self, cases: Sequence[AnyCase], methods: Sequence[str]) -> list[Row]:
        """The rows of all finished cases, method by method. Raises ValueError for a file that is not its case's row."""
        rows = []
        for method in methods:
            for case in cases:
                if not (file := self.row_file(case, method)).exists():
                    continue
                try:
                    row = read_json_value(file)
                    valid = self.is_row_of(case, method, row)
                except (ValueError, TypeError, KeyError, RecursionError):
                    valid = False
                if not valid:
                    raise ValueError(
                        f"{file}: not the figures of case {case.name} by {method}: remove it to run it again"
                    )
                rows.append(row)
        return rows

    def is_row_of(self, case: AnyCase, method: str, row: Any) -> bool:
        """Whether a row is of this case and method, has the required metrics, and holds finite numbers or None."""
        if (row["case"], row["kind"], row["method"]) != (case.name, case.kind, method):
            return False
        values = [row[key] for key in self.metrics if key in row or key in self.required]
        return all(value is None or (is_finite(value) and not isinstance(value, bool)) for value in values)
