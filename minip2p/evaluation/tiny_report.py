"""How good is the model that ships? python -m minip2p.evaluation.tiny_report

Measures on held-out combinations, with the judge, and writes the table of weights/README.md, contact sheets, and last
one JSON line. Everything is fixed beforehand: case i is the i-th scene of a seed of its own (EXAM_SEED and the three
after it; the judge's are its own), and is sampled with seed i.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.heatmaps import HeatmapAccumulator, accumulate_heatmap
from minip2p.attention.masks import heatmap_to_mask
from minip2p.checkpoints.load import load
from minip2p.errors import fail, run_guarded
from minip2p.evaluation.tiny_cases import (
    EXAM_SEED,
    MARGIN,
    graded_cases,
    held_out_scenes,
    measure_reweighting,
    measure_swap,
    measure_two_objects,
    swap_cases,
)
from minip2p.evaluation.workers import CaseResult, Measure, WorkerPool
from minip2p.io.files import shipped_weights, write_text
from minip2p.io.viz import grid
from minip2p.metrics.image import iou, mean, psnr
from minip2p.pipeline import Pipeline
from minip2p.text.prompt import token_indicator
from minip2p.tiny.judge import Judge
from minip2p.tiny.judge_train import examine, figures
from minip2p.tiny.scenes import Sprites, dataset, fetch_sprites, render
from minip2p.tiny.train import pictures

FULL = 200, 50  # the cases and steps whose table is the card's; a smaller look does not touch it


SHEET_CASES = 64  # cases of each kind on its contact sheet


CARD = shipped_weights("tiny").parent / "README.md"


# Each figure of the table: what is asked of it, and what it is.
MEANINGS = MappingProxyType(
    {
        "vae_psnr": ("26", "reconstruction of held-out renders, dB"),
        "vae_psnr_photo": ("28", "… of those in photo style, dB"),
        "map_iou": (
            "0.40",
            "mask of an object's word on noised held-out renders against its true mask, IoU; max-pooled as "
            "the published masks are, so that a perfect map would get .41",
        ),
        "map_iou_unpooled": ("", "… without the max-pool, where a perfect map would get .73"),
        "judge_object": ("0.97", "the judge itself, on held-out renders: all objects right"),
        "judge_colour": ("0.97", "… colour right"),
        "judge_background": ("0.97", "… place right"),
        "judge_style": ("0.97", "… style right"),
        "judge_iou": ("0.90", "… segmentation of the named object, IoU"),
        "judge_strength": ("0.95", "… rank correlation of a graded word's strength, the least of the next three"),
        "judge_fog": ("", "… of fog"),
        "judge_flowers": ("", "… of flowers"),
        "judge_snow": ("", "… of snow"),
        "judge_object_decoded": (
            "",
            "the judge on held-out renders that the VAE has encoded and decoded, as all that it "
            "judges has been decoded: all objects right",
        ),
        "judge_colour_decoded": ("", "… colour right"),
        "judge_iou_decoded": ("", "… segmentation, IoU"),
        "judge_fog_decoded": ("", "… rank correlation of fog"),
        "judge_flowers_decoded": ("", "… of flowers"),
        "judge_snow_decoded": ("", "… of snow"),
        "object": ("0.90", "one-object prompts: the object right, that is the likeliest of all 30"),
        "object_strict": ("", "… and it alone is likelier there than not, to the judge"),
        "colour": ("0.90", "… the colour right"),
        "background": ("0.95", "… the place right"),
        "style": ("0.95", "… the style right"),
        "two_objects": ("0.70", "two-object prompts: both right, that is the two likeliest of all 30"),
        "two_objects_strict": ("", "… and they alone are likelier there than not"),
        "different_pairs": ("", "… of different pairs, among all"),
        "swap_success": (
            "0.85",
            "swaps to a combination that is held out too, at the τ that the card recommends: the new "
            "object is what the judge sees",
        ),
        "different_swaps": ("", "… different ones among all, by objects, colour and place"),
        "usual_success": ("", "the same at the paper's τ, cross .8 and self .4"),
        "blend_success": ("", "the same at the card's τ with blending, by masks that are not max-pooled"),
        "alone_success": ("", "the same without P2P"),
        "psnr_alone": ("", "background, against the source, of the same seed without P2P, dB"),
        "psnr_usual": ("", "… with P2P at the paper's τ, dB"),
        "psnr_swap": ("", "… at the card's τ, dB"),
        "psnr_blend": ("", "… with blending, dB"),
        "swap_gain_db": ("2", "psnr_swap − psnr_alone"),
        "swap_blend_gain_db": ("8", "psnr_blend − psnr_alone"),
        "psnr_swap_right": ("", "psnr_swap of the swaps that are right"),
        "psnr_blend_right": ("", "psnr_blend of those that are right"),
        "mask_iou_generated": (
            "",
            "on generated pictures: mask of the object's word (sites of stride 1 and 2, all "
            "steps), max-pooled, against the judge's, where the object is right, IoU",
        ),
        "mask_iou_generated_unpooled": ("", "… without the max-pool"),
        "reweight_monotone": (
            "0.85",
            "a graded word of a photograph (fog and snow in the street, flowers on the beach) at "
            f"weights 0, 1, 2: strength rises each time, by {MARGIN} in all",
        ),
        "reweight_rise": ("", "… by how much, of 1"),
    }
)


@torch.no_grad()
def reconstruct(model: Pipeline, x: Tensor) -> Tensor:
    """Pictures b 3 H W in [-1, 1] as the VAE gives them back."""
    return model.vae.decode(model.vae.encode(x)[0]).clamp(-1, 1)


def vae_psnr(model: Pipeline, sprites: Sprites, count: int) -> dict[str, float]:
    """Reconstruction of held-out renders, all styles and photographs alone."""
    rows: dict[str, list[float]] = {"vae_psnr": [], "vae_psnr_photo": []}
    scenes = list(dataset(EXAM_SEED, count, held_out=True))
    for start in range(0, count, 20):
        some = scenes[start : start + 20]
        x = pictures(some, sprites)
        for scene, a, b in zip(some, x, reconstruct(model, x), strict=True):
            rows["vae_psnr"].append(psnr(a, b))
            if scene.style == "photo":
                rows["vae_psnr_photo"].append(psnr(a, b))
    return {name: mean(values) for name, values in rows.items()}


def map_iou(model: Pipeline, sprites: Sprites, count: int) -> dict[str, float]:
    """Held-out renders noised to the middle of the schedule and run once: the mask of the object's word (sites of
    stride 1 and 2, threshold .3) against its true mask, mean IoU; with the published masks' max-pool and without."""
    pooled: list[float] = []
    unpooled: list[float] = []
    for i, scene in enumerate(dataset(EXAM_SEED, count, held_out=True)):
        x0 = model.vae.scale(model.vae.encode(pictures([scene], sprites))[0])
        t = model.scheduler.config.num_train_timesteps // 2
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(i))
        x, context = model.scheduler.add_noise(x0, noise, torch.tensor([t])), model.text(scene.caption)
        for thing in scene.things:
            latent = (x.shape[-2], x.shape[-1])
            heat = HeatmapAccumulator(token_indicator(model.text.prompt(scene.caption), [thing.name]), latent, (1, 2))
            with torch.no_grad():
                model.unet(
                    x,
                    t,
                    context,
                    accumulate_heatmap(heat, lambda q, k, v, site: F.scaled_dot_product_attention(q, k, v)),
                )
            true = torch.from_numpy(render(scene, sprites).masks[thing.name])
            for values, pool in ((pooled, True), (unpooled, False)):
                values.append(iou(heatmap_to_mask(heat.mean[0], (true.shape[0], true.shape[1]), 0.3, pool), true))
    return {"map_iou": mean(pooled), "map_iou_unpooled": mean(unpooled)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minip2p.evaluation.tiny_report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="a folder (default: the embedded model)")
    parser.add_argument("--work", type=Path, default=Path(".train"), help="where the sprites are")
    parser.add_argument("--cases", type=int, default=200, help="prompts of each kind (default 200)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/report"), help="folder of the contact sheets")
    options = parser.parse_args()
    if options.cases < 1:
        return fail(f"--cases must be at least 1, not {options.cases}")
    return run_guarded(lambda: report(options))


def report(options: argparse.Namespace) -> None:
    """Measures, prints the table and the JSON line; a full report on the model that ships is the card's."""
    model, n, steps = load(options.model), options.cases, options.steps
    model.scheduler.timesteps(steps)  # refuses what cannot be run, before the first hour
    sprites = Sprites.load(fetch_sprites(options.work / "sprites"))
    options.out.mkdir(parents=True, exist_ok=True)
    table = vae_psnr(model, sprites, n) | map_iou(model, sprites, n)
    table |= run_cases(model, options.model, sprites, n, steps, options.out)
    lines = card_table(table, n, steps, model.default_guidance)
    print(lines)
    if options.model is None and (n, steps) == FULL and CARD.exists():  # an installed copy has no card
        write_card(CARD, lines)
    row = {name: None if math.isnan(value) else round(value, 4) for name, value in table.items()}
    print(json.dumps(row | {"cases": n}))


def run_cases(
    model: Pipeline, folder: Path | None, sprites: Sprites, n: int, steps: int, out: Path
) -> dict[str, float]:
    """All that the judge sees, and how well the judge itself sees, renders as they are and as the VAE gives them back.
    Writes the contact sheets."""
    judge = Judge.load()
    count = max(6 * n, 40)  # scenes: one in seven bears a given attribute
    table = figures(examine(judge, sprites, count=count), judge.config.attributes)
    worse = examine(judge, sprites, count=count, through=lambda x: reconstruct(model, x))
    table |= {f"{name}_decoded": value for name, value in figures(worse, judge.config.attributes).items()}
    swaps, pairs = list(swap_cases(n)), list(held_out_scenes(n, 2))
    table["different_swaps"] = len(
        {(old, new, scene.things[0].colour, scene.background) for scene, (_, old, new) in swaps}
    )
    table["different_pairs"] = len({frozenset(thing.name for thing in scene.things) for scene in pairs})
    kinds: list[tuple[str, Measure, Sequence[Any], int]] = [  # the last: columns of the sheet
        ("swaps", measure_swap, swaps, 10),
        ("pairs", measure_two_objects, pairs, 8),
        ("graded", measure_reweighting, graded_cases(n), 9),
    ]
    with WorkerPool(folder, steps) as crew:
        for name, measure, cases, width in kinds:
            found = crew.run_all(measure, cases)
            table |= case_means(found)
            views = [(view, "") for _, views in found[:SHEET_CASES] for view in views]
            grid(views, columns=width, least=128).save(out / f"{name}.png")
    table["swap_gain_db"] = table["psnr_swap"] - table["psnr_alone"]
    table["swap_blend_gain_db"] = table["psnr_blend"] - table["psnr_alone"]
    return table


def case_means(found: list[CaseResult]) -> dict[str, float]:
    """Each figure's mean over the cases that have it."""
    names = dict.fromkeys(name for figures, _ in found for name in figures)
    return {name: mean([figures[name] for figures, _ in found if name in figures]) for name in names}


def card_table(table: dict[str, float], cases: int, steps: int, guidance: float) -> str:
    """The table in markdown: each figure beside what is asked of it, if anything is."""
    lines = [
        f"{cases} cases of each kind, {steps} steps, guidance {guidance}.",
        "",
        "| figure | measured | asked | what it is |",
        "|---|---|---|---|",
    ]
    for name, (asked, meaning) in MEANINGS.items():
        if name in table:
            value = table[name]
            lines.append(f"| {name} | {f'{value:.3f}' if isinstance(value, float) else value} | {asked} | {meaning} |")
    return "\n".join(lines)


def write_card(card: Path, lines: str) -> None:
    """Puts the table between the card's two marks."""
    before, _, rest = card.read_text(encoding="utf-8").partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    write_text(card, f"{before}<!-- table -->\n{lines}\n<!-- end of table -->{after}")


if __name__ == "__main__":
    sys.exit(main())
