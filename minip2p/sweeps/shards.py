"""Shards: parts of a long list of independent units, for as many processes or machines, and their results together.

A unit is what is run, and written, as a whole: a seed of a sweep, a case of a benchmark.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minip2p.io.files import atomic_write, check_results_folder

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1. The default is the only one.

    It has every count-th unit, so that neighbours, which often take the same time, are in different shards.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "3/8". Raises ValueError."""
        number, _, count = text.partition("/")
        is_shard = all(part.isdecimal() and len(part) < 10 for part in (number, count))
        if not is_shard or not 1 <= int(number) <= int(count):
            raise ValueError(f"--shard is I/N, from 1/N to N/N, as 3/8, and not {text!r}")
        return cls(int(number), int(count))

    def of(self, units: Sequence[Unit]) -> list[Unit]:
        """The units of this part, in their order."""
        return list(units[self.number - 1 :: self.count])


ALL_UNITS = Shard()


def check_shard_folder(file: Path, settings: Mapping[str, Any], description: str) -> None:
    """Raises FileNotFoundError if a folder has no results, and ValueError if they are of other settings.

    The arguments: `minip2p.io.files.claim_results_folder`.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file: {file.parent} has no results of a shard")
    check_results_folder(file, settings, description)


def check_join(
    file: Path, results: Path, settings: Mapping[str, Any], description: str, others: Sequence[Path]
) -> None:
    """Raises ValueError if one of the folders that are joined, or the one that they are joined in, has other settings.

    others: the folders that are joined. The other arguments: `minip2p.io.files.claim_results_folder`.
    """
    for other in others:
        check_shard_folder(other / file.name, settings, description)
    if file.exists() or results.exists():
        check_results_folder(file, settings, description)


def copy_files(source: Path, folder: Path, names: Iterable[Path]) -> None:
    """Copies files of these relative paths from one folder to another, in this order, each of them atomically."""
    for name in names:
        with atomic_write(folder / name) as partial:
            shutil.copyfile(source / name, partial)


def refuse_unfinished(folder: Path, unfinished: Sequence[str], count: int) -> None:
    """Raises ValueError if results are missing. unfinished: their names. count: of all results."""
    if unfinished:
        raise ValueError(
            f"{folder}: {len(unfinished)} of {count} results are missing, such as {unfinished[0]}: run all shards to "
            "their end first; --join takes the folders of those that ran elsewhere"
        )
