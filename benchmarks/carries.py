"""What carries a picture? What an edit keeps of its source when one thing alone is taken from it, and when several are:

    python benchmarks/carries.py [--count N] [--steps N] [-o FOLDER]

Two tables: `CONDITIONS` on swaps of held-out scenes, and on changes of shape, as a duck into a giraffe, the share τ of
the run for which both attention maps are kept. The judge says whether the new thing is there (success) and where: kept
shape is the IoU of its mask with the old thing's. A case that is done is not done again. The last line is JSON.
"""

import argparse
import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common import finish, kept, some
from torch import Tensor, nn
from tqdm import tqdm

import minip2p
from minip2p.attention.contract import QK, Site, fused
from minip2p.attention.store import record_qk
from minip2p.errors import run_guarded
from minip2p.evaluation.tiny_cases import swap_cases
from minip2p.io import png, viz
from minip2p.io.files import claim_results_folder, write_text
from minip2p.io.images import to_pil
from minip2p.layers import ResnetBlock
from minip2p.metrics.image import interval, iou, psnr, structure
from minip2p.p2p.controller import controlled_attention
from minip2p.p2p.edit_plan import plan_edit
from minip2p.pipeline import Pipeline
from minip2p.sampling.trajectory import Trajectory
from minip2p.tiny.judge import Judge

TAU = 0.8  # as the card of the model recommends


@dataclass(frozen=True)
class Carried:
    """What is taken from the source. seed: its noise. cross, self_: τ of its maps. features: of the decoder's levels,
    the coarsest first, those whose residual blocks' outputs are the source's, up to TAU. unconditional: its ε_u.
    begin: the share of the run after which the target leaves the source's own latents."""

    seed: bool = True
    cross: float = 0.0
    self_: float = 0.0
    features: tuple[int, ...] = ()
    unconditional: bool = False
    begin: float = 0.0


CONDITIONS: Mapping[str, Carried] = {
    "nothing": Carried(seed=False),
    "seed": Carried(),
    "cross maps, no seed": Carried(seed=False, cross=TAU),
    "self maps, no seed": Carried(seed=False, self_=TAU),
    "both maps, no seed": Carried(seed=False, cross=TAU, self_=TAU),
    "seed, cross maps": Carried(cross=TAU),
    "seed, self maps": Carried(self_=TAU),
    "seed, both maps": Carried(cross=TAU, self_=TAU),
    "features of the coarsest level, no seed": Carried(seed=False, features=(0,)),
    "features of the two coarsest, no seed": Carried(seed=False, features=(0, 1)),
    "seed, features of the coarsest level": Carried(features=(0,)),
    "seed, features of the two coarsest": Carried(features=(0, 1)),
    "seed, features of all levels": Carried(features=(0, 1, 2)),
    "seed, unconditional branch": Carried(unconditional=True),
    "seed, both maps, unconditional branch": Carried(cross=TAU, self_=TAU, unconditional=True),
    "a fifth of the steps": Carried(begin=0.2),
    "two fifths of the steps": Carried(begin=0.4),
    "three fifths of the steps": Carried(begin=0.6),
}
TAUS = {f"τ {tau:g}": Carried(cross=tau, self_=tau) for tau in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
SHAPES = (
    ("duck", "giraffe"),
    ("turtle", "giraffe"),
    ("penguin", "horse"),
    ("elephant", "duck"),
    ("camel", "penguin"),
    ("rabbit", "elephant"),
    ("car", "umbrella"),
    ("guitar", "truck"),
    ("tulip", "bicycle"),
    ("lamp", "car"),
)
PLACES = ("on the beach", "in a meadow", "on the street", "in the desert")
COLUMNS = 7  # of a case's sheet: the source and all of TAUS in a row
FIGURES = {
    "success": ("success %", 100, 1),
    "shape": ("kept shape, IoU", 1, 2),
    "structure": ("structure × 10³", 1e3, 1),
    "psnr": ("background, dB", 1, 1),
}  # title, factor, digits


@dataclass(eq=False)
class Shelf:
    """Outputs of residual blocks, kept on one call of the UNet and given out on the next, in the same order."""

    keeps: bool = True
    kept: list[Tensor] = field(default_factory=list)


class Exchanged(nn.Module):
    """A residual block whose output is kept, or exchanged for what was kept: in the unconditional row too, as by
    plug-and-play (in one alone, guidance would blow up what parts the two noises)."""

    def __init__(self, block: ResnetBlock, shelf: Shelf):
        super().__init__()
        self.block, self.shelf = block, shelf

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        own = self.block(x, emb)
        if self.shelf.keeps:
            self.shelf.kept.append(own)
            return own
        return self.shelf.kept.pop(0)


def exchanging(model: Pipeline, levels: tuple[int, ...], shelf: Shelf) -> Pipeline:
    """The model with a UNet of its own, in which the residual blocks of these levels of the decoder are `Exchanged`."""
    other = replace(model, unet=copy.deepcopy(model.unet))
    for level in levels:
        blocks = other.unet.up_blocks[level].resnets
        for i, block in enumerate(blocks):
            blocks[i] = Exchanged(block, shelf)
    return other


def made(model: Pipeline, run: Trajectory, target: str, carried: Carried, seed: int) -> Tensor:
    """The target's picture, 3 H W: DDIM by hand, with what is carried taken from the run. seed: of other noise."""
    shelf = Shelf()
    parts = exchanging(model, carried.features, shelf) if carried.features else model
    steps, w = model.scheduler.steps(run.steps), run.guidance_scale
    empty, old, new = model.text(""), model.text(run.prompt), model.text(target)
    plan = plan_edit(
        model.text.prompt(run.prompt),
        model.text.prompt(target),
        run.steps,
        cross_replace=carried.cross,
        self_replace=carried.self_,
    )
    begin = int(carried.begin * run.steps)
    x = run.latents[begin : begin + 1] if carried.seed else model.prepare(target, seed=seed, steps=run.steps).noise
    for i, step in enumerate(steps[begin:], begin):
        found: dict[Site, QK] = {}
        source, features = run.latents[i : i + 1], bool(carried.features) and i < TAU * run.steps
        shelf.keeps, shelf.kept = True, []
        parts.guided_noise(source, step.t, empty, old, w, record_qk(found, lambda site, queries: True))
        shelf.keeps = not features
        attend = controlled_attention(found, [plan.at(i)])
        if carried.uncond_embeddings:
            eps_u = model.guided_noise(source, step.t, empty, empty, 0.0, fused)
            eps = eps_u + w * (parts.guided_noise(x, step.t, new, new, 1.0, attend) - eps_u)
        else:
            eps = parts.guided_noise(x, step.t, empty, new, w, attend)
        x = model.scheduler.step(x, eps, step)
    return model.decode(x)[0]


def measured(judge: Judge, before: Tensor, after: Tensor, old: str, new: str) -> dict[str, float | None]:
    """Success; kept shape, of what succeeded; structure distance; PSNR of what is no thing to the judge in either."""
    verdict = judge(torch.stack([before, after]))
    success = float(verdict.likeliest_objects(1)[1] == {new})
    shapes = verdict.masks(old)[0] > 0.5, verdict.masks(new)[1] > 0.5
    return {
        "success": success,
        "shape": iou(*shapes) if success else None,
        "structure": structure(judge.features(before), judge.features(after)),
        "psnr": psnr(before, after, ~(verdict.foreground > 0.5).any(0)),
    }


def table(rows: list[dict[str, dict[str, float | None]]], names: list[str]) -> dict[str, float | None]:
    """Prints the means and their 95 % confidence intervals; returns the means."""
    figures: dict[str, float | None] = {}
    titles = [title for title, _, _ in FIGURES.values()]
    print(f"\n| taken from the source | {' | '.join(titles)} |\n|{'---|' * (len(FIGURES) + 1)}")
    for name in names:
        cells = []
        for key, (_, factor, digits) in FIGURES.items():
            mean, half = interval(row[name][key] for row in rows)
            cells.append(f"{mean * factor:.{digits}f} ± {half * factor:.{digits}f}")
            figures[f"{name}, {key}"] = None if math.isnan(mean) else mean
        print(f"| {name} | {' | '.join(cells)} |")
    return figures


Case = tuple[str, str, str, str]  # source, target; the old thing, the new


def swaps(count: int) -> list[Case]:
    return [(scene.caption, target, old, new) for scene, (target, old, new) in swap_cases(count)]


def shapes(count: int) -> list[Case]:
    """Each pair of SHAPES at each of the places, and again with other seeds."""
    cases = [(f"{named(old)} {place}", f"{named(new)} {place}", old, new) for place in PLACES for old, new in SHAPES]
    return [cases[n % len(cases)] for n in range(count)]


def named(thing: str) -> str:
    return f"an {thing}" if thing[0] in "aeiou" else f"a {thing}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What an edit keeps of its source by what is taken from it")
    parser.add_argument("--count", type=some, default=80, help="cases of each table (default 80)")
    parser.add_argument("--steps", type=some, default=20, help="(default 20)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/carries"), help="(default out/carries)")
    given = parser.parse_args()
    model, judge, figures = minip2p.load(), Judge.load(), {}
    what = {"model": model.fingerprint, "conditions": [repr(CONDITIONS), repr(TAUS)]}
    claim_results_folder(given.out / "carries.json", given.out / f"swap-{given.steps}", what, "another model's cases")
    for kind, cases, conditions in (("swap", swaps(given.count), CONDITIONS), ("shape", shapes(given.count), TAUS)):
        rows = []
        for n, (source, target, old, new) in enumerate(tqdm(cases, disable=None, leave=False, unit="case")):
            folder = given.out / f"{kind}-{given.steps}"
            if not (folder / f"{n:03}.json").exists():
                with torch.inference_mode():
                    run = model.generate(source, seed=n, steps=given.steps)
                    views = {
                        name: made(model, run, target, carried, 10_000 + n) for name, carried in conditions.items()
                    }
                panels = [(run.image, source), *((to_pil(view), name) for name, view in views.items())]
                png.write_pngs([(folder / f"{n:03}.png", viz.grid(panels, COLUMNS, 128), f"{source} -> {target}")])
                row = {name: measured(judge, run.picture, view, old, new) for name, view in views.items()}
                write_text(folder / f"{n:03}.json", json.dumps(row) + "\n")
            rows.append(kept(folder / f"{n:03}.json", conditions))
        figures |= table(rows, list(conditions))
    finish({"cases": given.count, **figures})


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
