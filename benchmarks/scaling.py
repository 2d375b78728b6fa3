"""How the cost grows: python benchmarks/scaling.py [--model FOLDER] [--steps N] [--pixels A B …] [-o DIR]

Three tables, each with a plot: seconds and rows of an edit as more of them share a source, a call of the UNet as the
picture grows, the memory of a record as more steps are kept. Needs `pip install minip2p[sweep]`, for the plots.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import DTYPES, alone, finish, flops, in_turn, options, peak, peak_mb, pixels_of
from edit import CROSS, EIGHT, SELF, SOURCE, Size
from matplotlib.figure import Figure

import minip2p
from minip2p.pipeline import Pipeline

SIXTEEN = [*EIGHT, *(text.replace("beach", "street") for text in EIGHT)]
Row = dict[str, Any]


def edits(model: Pipeline, size: Size) -> list[Row]:
    """K edits of one source, their pictures and the source's decoded."""
    rows = []
    for k in (1, 2, 4, 8, 16):
        before = model.rows

        def run(k: int = k) -> None:
            start = {"latents": size.noise, "steps": size.steps, "guidance": 7.5}
            for done in model.edit(SOURCE, SIXTEEN[:k], cross_replace=CROSS, self_replace=SELF, **start):
                _ = done.image

        seconds = in_turn(1, ours=run)["ours"]
        rows.append(
            {
                "edits": k,
                "seconds": seconds,
                "seconds an edit": seconds / k,
                "rows": model.rows - before,
                "rows an edit": (model.rows - before) / k,
            }
        )
    return rows


@torch.no_grad()
def sizes(models: dict[str, Pipeline], pixels: Sequence[int]) -> list[Row]:
    """A call of the UNet on two rows, as a step with guidance makes it."""
    rows, most = [], {name: peak(model.dtype) for name, model in models.items()}
    for side in pixels:
        row: Row = {"pixels": side, "TFLOP": flops(models["fp32"], 2, side // 8) / 1e12}
        for name, model in models.items():
            x, words = torch.randn(2, 4, side // 8, side // 8).to(model.dtype), model.text(["", SOURCE])
            seconds = in_turn(2, once=lambda model=model, x=x, words=words: model.unet(x, 500, words))["once"]
            row |= {f"{name} s": seconds, f"{name} of the peak": row["TFLOP"] / seconds / most[name]}
        rows.append(row)
    return rows


def recorded(folder: Path, size: Size, kept: int, name: str) -> tuple[float, float]:
    """A record that keeps the maps of so many steps: the MB that it was to take, and by which the peak then grew."""
    model = minip2p.load(folder)
    run = model.generate(SOURCE, latents=size.noise, steps=size.steps, guidance_scale=7.5)
    before, share = peak_mb(), kept / size.steps
    record = model.record(run, cross_replace=share, self_replace=share, dtype=DTYPES[name]).record
    assert record is not None
    return sum(t.numel() * t.element_size() for t in record.tensors.values()) / 1e6, peak_mb() - before


def records(folder: Path, size: Size) -> list[Row]:
    """Each in a process of its own, since a process does not give back what it once held."""
    rows = []
    for kept in sorted({max(1, size.steps // 4), size.steps // 2, size.steps}):
        for name in DTYPES:
            predicted, grown = alone(recorded, folder, size, kept, name)
            rows.append({"steps kept": kept, "dtype": name, "predicted MB": predicted, "grown by MB": grown})
    return rows


def table(rows: Sequence[Row]) -> None:
    """In markdown."""
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print(
            "| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |", flush=True
        )


def plot(path: Path, rows: Sequence[Row], x: str, *ys: str) -> None:
    figure = Figure(figsize=(3.6 * len(ys), 3), layout="constrained")
    for axes, y in zip(figure.subplots(1, len(ys), squeeze=False)[0], ys, strict=True):
        axes.plot([row[x] for row in rows], [row[y] for row in rows], "o-")
        axes.set(xlabel=x, ylabel=y, ylim=(0, None))
        axes.set_xticks([row[x] for row in rows])
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = options("How the cost grows", steps=10)
    parser.add_argument("--small", type=int, help="pixels of the edits (default: the model's)")
    parser.add_argument("--pixels", type=int, nargs="+", help="sizes of the call (default: half to twice the model's)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/scaling"), help="the plots' folder")
    given = parser.parse_args()
    models = {name: minip2p.load(given.model, dtype=dtype) for name, dtype in DTYPES.items()}
    model = models["fp32"]
    whole = Size(pixels_of(model), given.steps)
    small = Size(given.small or whole.pixels, given.steps)
    given.out.mkdir(parents=True, exist_ok=True)
    found = {
        "edits": edits(model, small),
        "sizes": sizes(models, given.pixels or [whole.pixels * n // 2 for n in (1, 2, 3, 4)]),
        "records": records(given.model, whole),
    }
    for rows in found.values():
        table(rows)
    plot(given.out / "edits.png", found["edits"], "edits", "seconds an edit", "rows an edit")
    plot(given.out / "sizes.png", found["sizes"], "pixels", "fp32 s", "bf16 s", "fp32 of the peak", "bf16 of the peak")
    halves = [row for row in found["records"] if row["dtype"] == "bf16"]
    plot(given.out / "records.png", halves, "steps kept", "predicted MB", "grown by MB")
    finish(found)


if __name__ == "__main__":
    main()
