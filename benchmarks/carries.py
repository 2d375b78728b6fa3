"""What makes an edit look like its source? What is preserved when one thing is taken from it alone, or several are:

    python benchmarks/carries.py [--count N] [--steps N] [-o FOLDER]

Two tables: `CONDITIONS` on swaps of held-out scenes; and on changes of shape, such as a duck into a giraffe, the share
τ of the run for which both attention maps are injected. The judge tells whether the new object is there (success) and
where: the preserved shape is the IoU of its mask with the old object's. Finished cases are not run again. The last line
is JSON.
"""

import argparse
import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common import positive_int, print_figures, read_figures
from torch import Tensor, nn
from tqdm import tqdm

import minip2p
from minip2p.attention.contract import QK, Site
from minip2p.attention.store import record_qk
from minip2p.checkpoints.components import Components
from minip2p.errors import run_guarded
from minip2p.evaluation.tiny_cases import swap_cases
from minip2p.io import png, viz
from minip2p.io.files import claim_results_folder, write_text
from minip2p.io.images import to_pil
from minip2p.layers import ResnetBlock
from minip2p.metrics.image import interval, iou, psnr, structure
from minip2p.p2p.controller import controlled_attention
from minip2p.p2p.edit_plan import plan_edit
from minip2p.p2p.options import EditOptions
from minip2p.pipeline import Pipeline
from minip2p.sampling.guidance import guided_noise
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory
from minip2p.tiny.judge import Judge

TAU = 0.8  # as the card of the model recommends


@dataclass(frozen=True)
class Carried:
    """What is taken from the source.

    seed: its initial noise. cross, self_: τ of its attention maps. features: of these levels of the decoder, the
    coarsest first, the outputs of the residual blocks, up to TAU. unconditional: its unconditional noise ε_u. begin:
    the share of the run after which the target leaves the source's own latents.
    """

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
COLUMNS = 7  # of a case's contact sheet: the source and all of TAUS in a row
FIGURES = {  # title, factor, digits
    "success": ("success %", 100, 1),
    "shape": ("kept shape, IoU", 1, 2),
    "structure": ("structure × 10³", 1e3, 1),
    "psnr": ("background, dB", 1, 1),
}

Case = tuple[str, str, str, str]  # source prompt, target prompt, old object, new object


@dataclass(eq=False)
class FeatureTape:
    """The outputs of residual blocks: recorded in one call of the UNet and played in the next, in the same order."""

    is_recording: bool = True
    features: list[Tensor] = field(default_factory=list)


class TapedBlock(nn.Module):
    """A residual block whose output is recorded on a tape, or replaced by what is on it.

    It is replaced in the unconditional row too, as by plug-and-play: if it were replaced in one row alone, guidance
    would amplify the difference between the two.
    """

    def __init__(self, block: ResnetBlock, tape: FeatureTape):
        super().__init__()
        self.block, self.tape = block, tape

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if not self.tape.is_recording:
            return self.tape.features.pop(0)
        self.tape.features.append(self.block(x, emb))
        return self.tape.features[-1]


def with_tape(components: Components, levels: tuple[int, ...], tape: FeatureTape) -> Components:
    """The same model with a copy of its UNet, in which the residual blocks of some levels of the decoder are taped."""
    unet = copy.deepcopy(components.unet)
    for level in levels:
        blocks = unet.up_blocks[level].resnets
        for i, block in enumerate(blocks):
            blocks[i] = TapedBlock(block, tape)
    return replace(components, unet=unet)


def edit_picture(pipe: Pipeline, run: Trajectory, target: str, carried: Carried, seed: int) -> Tensor:
    """The target's picture, 3 H W: a DDIM loop that takes from the run what is carried. seed: of another noise."""
    tape = FeatureTape()
    components = with_tape(pipe.components, carried.features, tape) if carried.features else pipe.components
    steps, w = pipe.scheduler.steps(run.steps), run.guidance_scale
    uncond, source_text, target_text = pipe.text(""), pipe.text(run.prompt), pipe.text(target)
    options = EditOptions(cross_replace=carried.cross, self_replace=carried.self_)
    plan = plan_edit(pipe.text.prompt(run.prompt), pipe.text.prompt(target), run.steps, options)
    begin = int(carried.begin * run.steps)
    if carried.seed:
        x = run.latents[begin : begin + 1]
    else:
        x = pipe.prepare(target, RunSettings(seed=seed, steps=run.steps)).noise
    for i, step in enumerate(steps[begin:], begin):
        source_x, pairs = run.latents[i : i + 1], dict[Site, QK]()
        tape.is_recording, tape.features = True, []
        record = record_qk(pairs, lambda site, queries: True)
        guided_noise(components, source_x, step.t, uncond, source_text, guidance_scale=w, attend=record)
        tape.is_recording = not (carried.features and i < TAU * run.steps)
        control = controlled_attention(pairs, [plan.at(i)])
        if carried.unconditional:
            eps_uncond = guided_noise(pipe.components, source_x, step.t, uncond, uncond, guidance_scale=0.0)
            eps_cond = guided_noise(components, x, step.t, target_text, target_text, guidance_scale=1.0, attend=control)
            eps = eps_uncond + w * (eps_cond - eps_uncond)
        else:
            eps = guided_noise(components, x, step.t, uncond, target_text, guidance_scale=w, attend=control)
        x = pipe.scheduler.step(x, eps, step)
    return pipe.components.decode(x)[0]


def measure(judge: Judge, before: Tensor, after: Tensor, old: str, new: str) -> dict[str, float | None]:
    """The figures of an edit: success; the shape that is preserved, where it succeeded; structure distance; PSNR of the
    background, where the judge sees no object in either picture."""
    verdict = judge(torch.stack([before, after]))
    success = float(verdict.likeliest_objects(1)[1] == {new})
    old_mask, new_mask = verdict.masks(old)[0] > 0.5, verdict.masks(new)[1] > 0.5
    return {
        "success": success,
        "shape": iou(old_mask, new_mask) if success else None,
        "structure": structure(judge.features(before), judge.features(after)),
        "psnr": psnr(before, after, ~(verdict.foreground > 0.5).any(0)),
    }


def print_table(rows: list[dict[str, dict[str, float | None]]], names: list[str]) -> dict[str, float | None]:
    """Prints the means and their 95 % confidence intervals. Returns the means."""
    means: dict[str, float | None] = {}
    titles = [title for title, _, _ in FIGURES.values()]
    print(f"\n| taken from the source | {' | '.join(titles)} |\n|{'---|' * (len(FIGURES) + 1)}")
    for name in names:
        cells = []
        for key, (_, factor, digits) in FIGURES.items():
            mean, half = interval(row[name][key] for row in rows)
            half_text = "" if math.isnan(half) else f" ± {half * factor:.{digits}f}"  # none of a single case
            cells.append(f"{mean * factor:.{digits}f}{half_text}")
            means[f"{name}, {key}"] = None if math.isnan(mean) else mean
        print(f"| {name} | {' | '.join(cells)} |")
    return means


def swap_prompts(count: int) -> list[Case]:
    """Swaps of held-out scenes."""
    return [(scene.caption, target, old, new) for scene, (target, old, new) in swap_cases(count)]


def shape_prompts(count: int) -> list[Case]:
    """Each pair of SHAPES at each of the PLACES, repeated until there are enough; each case has a seed of its own."""
    cases = [
        (f"{with_article(old)} {place}", f"{with_article(new)} {place}", old, new)
        for place in PLACES
        for old, new in SHAPES
    ]
    return [cases[n % len(cases)] for n in range(count)]


def with_article(word: str) -> str:
    """A word with "a" or "an"."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def run_case(
    pipe: Pipeline, judge: Judge, case: Case, number: int, conditions: Mapping[str, Carried], file: Path, steps: int
) -> None:
    """Edits a case under each condition, and writes its figures and beside them its contact sheet."""
    source, target, old, new = case
    with torch.inference_mode():
        run = pipe.generate(source, seed=number, steps=steps)
        pictures = {
            name: edit_picture(pipe, run, target, carried, 10_000 + number) for name, carried in conditions.items()
        }
    panels = [(run.image, source), *((to_pil(picture), name) for name, picture in pictures.items())]
    png.write_pngs([(file.with_suffix(".png"), viz.grid(panels, COLUMNS, 128), f"{source} -> {target}")])
    before = run.picture
    row = {name: measure(judge, before, picture, old, new) for name, picture in pictures.items()}
    write_text(file, json.dumps(row) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What an edit preserves of its source by what is taken from it")
    parser.add_argument("--count", type=positive_int, default=80, help="cases of each table (default 80)")
    parser.add_argument("--steps", type=positive_int, default=20, help="(default 20)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/carries"), help="(default out/carries)")
    args = parser.parse_args(arguments)
    pipe, judge = minip2p.load(), Judge.load()
    figures: dict[str, float | None] = {}
    settings = {"model": pipe.components.fingerprint, "conditions": [repr(CONDITIONS), repr(TAUS)]}
    results = args.out / f"swap-{args.steps}"
    claim_results_folder(args.out / "carries.json", results, settings, "another model's cases")
    tables = ("swap", swap_prompts(args.count), CONDITIONS), ("shape", shape_prompts(args.count), TAUS)
    for kind, cases, conditions in tables:
        rows = []
        for number, case in enumerate(tqdm(cases, disable=None, leave=False, unit="case")):
            file = args.out / f"{kind}-{args.steps}" / f"{number:03}.json"
            if not file.exists():
                run_case(pipe, judge, case, number, conditions, file, args.steps)
            rows.append(read_figures(file, conditions))
        figures |= print_table(rows, list(conditions))
    print_figures({"cases": args.count, **figures})


if __name__ == "__main__":
    raise SystemExit(run_guarded(main))
