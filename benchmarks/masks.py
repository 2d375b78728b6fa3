"""How well the mask of a word covers its object: the published recipe and sharper ones, compared with the true mask.

    python benchmarks/masks.py [--count N] [--steps N] [-o PICTURE]

On the photographs of the editing benchmark of which one object is edited: each is inverted, masked by the word of that
object alone, and compared with the renderer's mask at the photograph's own pixels. The picture shows the first six. The
last line is JSON.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common import positive_int, print_figures
from torch import Tensor
from tqdm import tqdm

import minip2p
from minip2p.attention.masks import heatmap_to_mask
from minip2p.errors import run_guarded
from minip2p.evaluation.pie_bench import read_cases
from minip2p.io import png, viz
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import interval, iou
from minip2p.sampling.trajectory import Trajectory

KINDS = ("object", "colour", "remove", "two")  # cases of one edited object, whose mask is the true one
FINEST = minip2p.SiteFilter(strides=(1,))
SHEET_CASES = 6  # photographs in the picture
MakeMask = Callable[[Trajectory, list[Any], tuple[int, int]], Tensor]  # (run, words, rows and columns) -> mask H W


def published_recipe(stride: int) -> MakeMask:
    """The steps of the published code on the maps of a stride: max-pool, nearest pixel, .3 of the maximum."""
    sites = minip2p.SiteFilter(strides=(stride,))
    return lambda run, words, size: heatmap_to_mask(run.heatmaps(list(words), sites=sites).total.sum(0), size, 0.3)


MASKS: Mapping[str, MakeMask] = MappingProxyType(
    {
        "recipe at stride 2": published_recipe(2),
        "recipe at stride 1": published_recipe(1),
        "stride 1, smooth, .4": lambda run, words, size: run.mask(words, threshold=0.4, sites=FINEST),
        "stride 1, smooth, Otsu": lambda run, words, size: run.mask(words, sites=FINEST),
        "… spread once": lambda run, words, size: run.mask(words, sites=FINEST, self_attention_hops=1),
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How well the mask of a word covers its object")
    parser.add_argument("--count", type=positive_int, default=172, help="the first N photographs (default 172, all)")
    parser.add_argument("--steps", type=positive_int, default=20, help="(default 20)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/masks.png"), help="(default out/masks.png)")
    args = parser.parse_args(arguments)
    png.check_writable([args.out])
    pipe = minip2p.load()
    cases = [case for case in read_cases() if case.kind in KINDS][: args.count]
    ious: dict[str, list[float]] = {name: [] for name in MASKS}
    columns = []
    for case in tqdm(cases, disable=None, leave=False, unit="picture"):
        photo = read_image(case.picture)
        size = (photo.height, photo.width)
        run = pipe.invert(fit_image(photo, size), case.source, steps=args.steps)
        true_mask, words = case.mask(size), list(case.blend["source"])
        panels = [(photo, case.source), (viz.mask_image(true_mask, photo.size), f"{words[0]}: the true mask")]
        for name, make_mask in MASKS.items():
            mask = make_mask(run, words, size)
            ious[name].append(iou(mask, true_mask))
            panels.append((viz.mask_image(mask, photo.size), f"{name}: {ious[name][-1]:.2f}"))
        columns.append(panels)
    print("| mask | IoU |\n|---|---|")
    for name, values in ious.items():
        mean, half = interval(values)
        print(f"| {name} | {mean:.3f} ± {half:.3f} |")
    rows = zip(*columns[:SHEET_CASES], strict=True)
    sheet = viz.grid([panel for row in rows for panel in row], min(SHEET_CASES, len(cases)), 128)
    png.write_pngs([(args.out, sheet, "masks of words beside the truth")])
    print(args.out)
    print_figures({"pictures": len(cases), **{name: interval(values)[0] for name, values in ious.items()}})


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
