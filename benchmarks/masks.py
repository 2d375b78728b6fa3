"""How well a word's mask meets its thing: the published recipe's and sharper ones beside the truth.

    python benchmarks/masks.py [--count N] [--steps N] [-o PICTURE]

On the photographs of the benchmark whose edit is of one thing: inverted, masked by that thing's word alone, compared
with the renderer's true mask at the picture's own pixels. The last line is JSON; the picture shows the first six.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from common import finish, some
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

KINDS = ("object", "colour", "remove", "two")  # one thing is edited, and its mask is the true one
SHOWN = 6  # pictures
Masked = Callable[[Trajectory, list[str], tuple[int, int]], Tensor]


def recipe(stride: int) -> Masked:
    """The published steps on the maps of a stride: max-pool, nearest pixel, .3 of the maximum."""
    return lambda run, words, size: heatmap_to_mask(run.heatmaps(list(words), (stride,)).total.sum(0), size, 0.3)


MASKS: Mapping[str, Masked] = MappingProxyType(
    {
        "recipe at stride 2": recipe(2),
        "recipe at stride 1": recipe(1),
        "stride 1, smooth, .4": lambda run, words, size: run.where(words, threshold=0.4, strides=(1,)),
        "stride 1, smooth, Otsu": lambda run, words, size: run.where(words, strides=(1,)),
        "… spread once": lambda run, words, size: run.where(words, strides=(1,), self_attention_hops=1),
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description="How well a word's mask meets its thing")
    parser.add_argument("--count", type=some, default=172, help="the first N of such pictures (default 172, all)")
    parser.add_argument("--steps", type=some, default=20, help="(default 20)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/masks.png"), help="(default out/masks.png)")
    given = parser.parse_args()
    png.check_writable([given.out])
    model = minip2p.load()
    cases = [case for case in read_cases() if case.kind in KINDS][: given.count]
    found: dict[str, list[float]] = {name: [] for name in MASKS}
    columns = []
    for case in tqdm(cases, disable=None, leave=False, unit="picture"):
        picture = read_image(case.picture)
        size = (picture.height, picture.width)
        run = model.invert(fit_image(picture, size), case.source, steps=given.steps)
        true, words = case.mask(size), list(case.blend["source"])
        made = {name: mask(run, words, size) for name, mask in MASKS.items()}
        for name, mask in made.items():
            found[name].append(iou(mask, true))
        panels = [(picture, case.source), (viz.mask_image(true, picture.size), f"{words[0]}: the true mask")]
        columns.append(
            panels
            + [(viz.mask_image(mask, picture.size), f"{name}: {iou(mask, true):.2f}") for name, mask in made.items()]
        )
    print("| mask | IoU |\n|---|---|")
    for name, values in found.items():
        mean, half = interval(values)
        print(f"| {name} | {mean:.3f} ± {half:.3f} |")
    sheet = viz.grid(
        [panel for row in zip(*columns[:SHOWN], strict=True) for panel in row], min(SHOWN, len(cases)), 128
    )
    png.write_pngs([(given.out, sheet, "masks of words beside the truth")])
    print(given.out)
    finish({"pictures": len(cases), **{name: interval(values)[0] for name, values in found.items()}})


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
