"""The exam of pairs of the small world: what each filter keeps, and how often that is right.

    minip2p pairs prompts.jsonl -o all --least none --keep 4 --samples 4
    python -m minip2p.pairs.exam all

Right is what the judge finds right: the picture shows what its caption says, and so does the edited picture, in which
nothing is left that should have gone. No filter knows the judge.
"""

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from minip2p.errors import run_guarded
from minip2p.io.images import fit_image
from minip2p.pairs.dataset import read_unit
from minip2p.pairs.settings import CLIP_LEAST, MODEL_LEAST, best, passes
from minip2p.tiny.judge import Judge

Row = Mapping[str, Any]


def read_candidates(folder: Path) -> list[dict[str, Any]]:
    """The candidates of all units of a folder. Raises ValueError unless all have pictures, and what is to be found."""
    rows = [row for file in sorted((folder / "units").glob("*.parquet")) for row in read_unit(file)]
    if not rows:
        raise ValueError(f"{folder}: has no pairs")
    if any(row["rank"] is None for row in rows):
        raise ValueError(f"{folder}: some candidates were not kept: make all with --least none and --keep as --samples")
    if any(not row["expected"] for row in rows):
        raise ValueError(f"{folder}: the prompts do not say what is expected, as those of --scenes do")
    return rows


def is_right(judge: Judge, row: Row) -> bool:
    """Whether the judge finds in both pictures of a pair what is expected."""
    expected = json.loads(row["expected"])
    before, after = decode(row["input_image"]), decode(row["edited_image"])
    return judge.matches(before, expected["before"]) and judge.matches(after, expected["after"])


def decode(picture: Mapping[str, Any]) -> Tensor:
    """A picture of a row as 3 H W in [-1, 1]."""
    with Image.open(io.BytesIO(picture["bytes"])) as image:
        return fit_image(image, (image.height, image.width))


def examine(rows: Sequence[Row], right: Sequence[bool]) -> list[dict[str, Any]]:
    """For each filter alone, for all together and for the best of each edit: what is kept of `rows`, and how often it
    is right.

    right: of each row. Keys of a result: filter, of (the number of candidates, or of edits where the best are taken),
    kept_count, right_count.
    """
    least = MODEL_LEAST if rows[0]["clip_image"] is None else CLIP_LEAST
    edits: dict[tuple[str, str], list[int]] = {}
    for n, row in enumerate(rows):
        edits.setdefault((row["original_prompt"], row["edited_prompt"]), []).append(n)

    def best_of_each(numbers: Sequence[int]) -> list[int]:
        groups = [[n for n in group if n in numbers] for group in edits.values()]
        return [group[best([rows[n] for n in group])[0]] for group in groups if group]

    every = list(range(len(rows)))
    chosen = {"none": every}
    for name, value in least.items():
        chosen[f"{name} ≥ {value:g}"] = [n for n in every if passes(rows[n], {name: value})]
    good = [n for n in every if passes(rows[n], least)]
    chosen |= {"all of these": good, "the best of each edit": best_of_each(every)}
    chosen["the best of those that pass all"] = best_of_each(good)
    return [
        {
            "filter": name,
            "of": len(edits) if "best" in name else len(rows),
            "kept_count": len(numbers),
            "right_count": sum(right[n] for n in numbers),
        }
        for name, numbers in chosen.items()
    ]


def markdown(results: Sequence[Row]) -> str:
    """A table of results."""
    lines = ["| filter | kept | right |", "|---|---|---|"]
    for result in results:
        total, count, right = result["of"], result["kept_count"], result["right_count"]
        share = f"{right / count:.0%} ({right})" if count else "–"
        lines.append(f"| {result['filter']} | {count} of {total} | {share} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of a folder and returns the exit status."""
    parser = argparse.ArgumentParser(description="Examines the filters of pairs by the judge of the small world.")
    parser.add_argument("folder", type=Path, help="of minip2p pairs, with all candidates kept")
    args = parser.parse_args(argv)

    def work() -> None:
        rows, judge = read_candidates(args.folder), Judge.load()
        print(markdown(examine(rows, [is_right(judge, row) for row in rows])))

    return run_guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
