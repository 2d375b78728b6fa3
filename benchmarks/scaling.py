"""How the cost grows: python benchmarks/scaling.py [--model FOLDER] [--steps N] [--pixels A B …] [-o DIR]

Three tables, each with a plot: seconds and rows of an edit as more edits share a source, a call of the UNet as the
picture grows, and the memory of a cache as more steps are recorded. The plots need `pip install minip2p[sweep]`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    DTYPES,
    in_new_process,
    make_parser,
    matmul_peak,
    peak_memory_mb,
    print_figures,
    time_in_turn,
    training_side,
    unet_tflop,
)
from edit import EIGHT, SOURCE, Size, run_minip2p
from matplotlib.figure import Figure

import minip2p
from minip2p.checkpoints.components import RowCounter
from minip2p.pipeline import Pipeline

SIXTEEN = [*EIGHT, *(text.replace("beach", "street") for text in EIGHT)]
Row = dict[str, Any]


def measure_edits(pipe: Pipeline, size: Size) -> list[Row]:
    """Several edits of one source, with the pictures of the edits, without the source's."""
    rows = []
    for count in (1, 2, 4, 8, 16):
        counter = RowCounter()
        counted = pipe.counting(counter)
        targets = SIXTEEN[:count]
        seconds = time_in_turn(1, edits=lambda pipe=counted, targets=targets: run_minip2p(pipe, size, *targets))[
            "edits"
        ]
        rows.append(
            {
                "edits": count,
                "seconds": seconds,
                "seconds an edit": seconds / count,
                "rows": counter.rows,
                "rows an edit": counter.rows / count,
            }
        )
    return rows


@torch.no_grad()
def measure_sizes(pipes: dict[str, Pipeline], pixels: Sequence[int]) -> list[Row]:
    """A call of the UNet on two rows, as in a step with guidance. pixels: sides of the picture."""
    rows, peaks = [], {name: matmul_peak(pipe.dtype) for name, pipe in pipes.items()}
    for side in pixels:
        row: Row = {"pixels": side, "TFLOP": unet_tflop(pipes["fp32"], 2, side // 8)}
        for name, pipe in pipes.items():
            x, context = torch.randn(2, 4, side // 8, side // 8).to(pipe.dtype), pipe.text(["", SOURCE]).tokens
            call = lambda unet=pipe.unet, x=x, context=context: unet(x, 500, context)  # noqa: E731
            seconds = time_in_turn(2, unet=call)["unet"]
            row |= {f"{name} s": seconds, f"{name} of the peak": row["TFLOP"] / seconds / peaks[name]}
        rows.append(row)
    return rows


def measure_cache(folder: Path, size: Size, steps: int, dtype: str) -> tuple[float, float]:
    """A cache of the maps of so many steps: its predicted size, and by how much the peak of memory grew, both in MB."""
    pipe = minip2p.load(folder)
    run = pipe.generate(SOURCE, **size.settings)
    before, share = peak_memory_mb(), steps / size.steps
    cache = pipe.record(run, cross_replace=share, self_replace=share, dtype=DTYPES[dtype]).qk_cache
    assert cache is not None
    return sum(t.numel() * t.element_size() for t in cache.tensors.values()) / 1e6, peak_memory_mb() - before


def measure_caches(folder: Path, size: Size) -> list[Row]:
    """A quarter, half and all of the steps recorded, each in a process of its own."""
    rows = []
    for steps in sorted({max(1, size.steps // 4), size.steps // 2, size.steps}):
        for dtype in DTYPES:
            predicted, growth = in_new_process(measure_cache, folder, size, steps, dtype)
            rows.append({"steps kept": steps, "dtype": dtype, "predicted MB": predicted, "grown by MB": growth})
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Prints rows as a table in markdown."""
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        print("| " + " | ".join(cells) + " |", flush=True)


def plot(path: Path, rows: Sequence[Row], x: str, *ys: str) -> None:
    """Plots columns of a table over another one, side by side."""
    figure = Figure(figsize=(3.6 * len(ys), 3), layout="constrained")
    for axes, y in zip(figure.subplots(1, len(ys), squeeze=False)[0], ys, strict=True):
        axes.plot([row[x] for row in rows], [row[y] for row in rows], "o-")
        axes.set(xlabel=x, ylabel=y, ylim=(0, None))
        axes.set_xticks([row[x] for row in rows])
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = make_parser("How the cost grows", steps=10)
    parser.add_argument("--small", type=int, help="side in pixels of the edits (default: the model's)")
    parser.add_argument("--pixels", type=int, nargs="+", help="sides for the call (default: half to twice the model's)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/scaling"), help="the folder of the plots")
    args = parser.parse_args()
    pipes = {name: minip2p.load(args.model, dtype=dtype) for name, dtype in DTYPES.items()}
    full = Size(training_side(pipes["fp32"]), args.steps)
    small = Size(args.small or full.pixels, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    tables = {
        "edits": measure_edits(pipes["fp32"], small),
        "sizes": measure_sizes(pipes, args.pixels or [full.pixels * n // 2 for n in (1, 2, 3, 4)]),
        "records": measure_caches(args.model, full),
    }
    for rows in tables.values():
        print_table(rows)
    half_rows = [row for row in tables["records"] if row["dtype"] == "bf16"]
    plot(args.out / "edits.png", tables["edits"], "edits", "seconds an edit", "rows an edit")
    plot(args.out / "sizes.png", tables["sizes"], "pixels", "fp32 s", "bf16 s", "fp32 of the peak", "bf16 of the peak")
    plot(args.out / "records.png", half_rows, "steps kept", "predicted MB", "grown by MB")
    print_figures(tables)


if __name__ == "__main__":
    main()
