"""How good is the model that ships? python -m minip2p.evaluation.tiny_report

Measures it with the judge on held-out combinations, prints the table of weights/README.md and one line of JSON, and
writes contact sheets. All cases are fixed: case i is the i-th scene of EXAM_SEED or of one of the three seeds after it
(the judge's seeds are others), and it is sampled with seed i.

Axes: b batch, H W pixels.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image

from minip2p.attention.contract import SiteFilter, fused
from minip2p.attention.heatmaps import HeatmapAccumulator, record_heatmaps
from minip2p.attention.masks import heatmap_to_mask
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
from minip2p.io.files import read_text, shipped_weights, write_text
from minip2p.io.viz import grid
from minip2p.metrics.frechet import frechet_distance
from minip2p.metrics.image import iou, mean, psnr
from minip2p.pipeline import Pipeline, load
from minip2p.sched import DDIMScheduler
from minip2p.text.prompt import token_indicator
from minip2p.tiny.judge import Judge
from minip2p.tiny.judge_data import reconstruct
from minip2p.tiny.judge_exam import examine, judge_metrics
from minip2p.tiny.render import render, render_batch
from minip2p.tiny.scenes import Scene, dataset
from minip2p.tiny.sprites import Sprites, fetch_sprites

FULL_REPORT = 200, 50  # cases and steps of the card's table; a smaller report does not change the card
SHEET_CASES = 64  # how many cases of each kind its contact sheet shows
BATCH = 20  # renders that the VAE reconstructs at a time
CARD = shipped_weights("tiny").parent / "README.md"

# Each figure of the table: its target, if it has one, and what it measures.
MEANINGS = MappingProxyType(
    {
        "vae_psnr": ("26", "reconstruction of held-out renders, dB"),
        "vae_psnr_photo": ("28", "… of those in photo style, dB"),
        "map_iou": (
            "0.40",
            "mask of an object's word, on noised held-out renders, against its true mask, IoU; max-pooled as the "
            "published masks are, so that a perfect map would get .41",
        ),
        "map_iou_unpooled": ("", "… without the max-pool, where a perfect map would get .73"),
        "judge_object": ("0.97", "the judge itself on held-out renders: all objects right"),
        "judge_object_strict": ("", "… the objects that are likelier present than absent are the scene's"),
        "judge_colour": ("0.97", "… colour right"),
        "judge_background": ("0.97", "… place right"),
        "judge_style": ("0.97", "… style right"),
        "judge_iou": ("0.90", "… segmentation of the named object, IoU"),
        "judge_strength": (
            "0.95",
            "… rank correlation of a graded word's strength: the lowest of the next three",
        ),
        "judge_fog": ("", "… of fog"),
        "judge_flowers": ("", "… of flowers"),
        "judge_snow": ("", "… of snow"),
        "judge_object_decoded": (
            "",
            "the judge on held-out renders that the VAE has encoded and decoded, since all pictures that it judges are "
            "decoded: all objects right",
        ),
        "judge_object_strict_decoded": ("", "… the objects that are likelier present than absent are the scene's"),
        "judge_colour_decoded": ("", "… colour right"),
        "judge_iou_decoded": ("", "… segmentation, IoU"),
        "judge_fog_decoded": ("", "… rank correlation of fog"),
        "judge_flowers_decoded": ("", "… of flowers"),
        "judge_snow_decoded": ("", "… of snow"),
        "object": ("0.90", "one-object prompts: the object is right, which means the likeliest of all 30"),
        "object_strict": ("", "… and the judge finds it, and no other, likelier present than absent"),
        "colour": ("0.90", "… the colour is right"),
        "background": ("0.95", "… the place is right"),
        "style": ("0.95", "… the style is right"),
        "two_objects": ("0.70", "two-object prompts: both are right, which means the two likeliest of all 30"),
        "two_objects_strict": ("", "… and the judge finds them, and no others, likelier present than absent"),
        "different_pairs": ("", "… the number of different pairs among the cases"),
        "frechet": (
            "",
            "Fréchet distance of the judge's features: the pictures of all one- and two-object prompts against renders "
            "of the same scenes that the VAE has encoded and decoded",
        ),
        "swap_success": (
            "0.85",
            "swaps to a combination that is held out as well, at the τ that the card recommends: to the judge the new "
            "object is the likeliest",
        ),
        "different_swaps": ("", "… the number of different ones among the cases, by objects, colour and place"),
        "usual_success": ("", "the same at the τ of the paper, cross .8 and self .4"),
        "blend_success": ("", "the same at the card's τ with a local blend, whose masks are not max-pooled"),
        "alone_success": ("", "the same without P2P"),
        "psnr_alone": ("", "background against the source: the same seed without P2P, dB"),
        "psnr_usual": ("", "… with P2P at the τ of the paper, dB"),
        "psnr_swap": ("", "… at the card's τ, dB"),
        "psnr_blend": ("", "… with a local blend, dB"),
        "swap_gain_db": ("2", "psnr_swap − psnr_alone"),
        "swap_blend_gain_db": ("8", "psnr_blend − psnr_alone"),
        "psnr_swap_right": ("", "psnr_swap of the successful swaps"),
        "psnr_blend_right": ("", "psnr_blend of the successful ones"),
        "mask_iou_generated": (
            "",
            "generated pictures whose object is right: max-pooled mask of the object's word (sites of stride 1 and 2, "
            "all steps) against the judge's mask, IoU",
        ),
        "mask_iou_generated_unpooled": ("", "… without the max-pool"),
        "reweight_monotone": (
            "0.85",
            "a graded word of a photograph (fog and snow in the street, flowers on the beach) at weights 0, 1, 2: its "
            f"strength rises with each weight, and by {MARGIN} in all",
        ),
        "reweight_rise": ("", "… the rise in all, on a scale from 0 to 1"),
    }
)


def vae_psnr(pipe: Pipeline, sprites: Sprites, count: int) -> dict[str, float]:
    """PSNR of the VAE's reconstruction of held-out renders, in all styles and of photographs alone."""
    scenes = list(dataset(EXAM_SEED, count, held_out=True))
    values: dict[str, list[float]] = {"vae_psnr": [], "vae_psnr_photo": []}
    for start in range(0, count, BATCH):
        batch = scenes[start : start + BATCH]
        renders = render_batch(batch, sprites)
        for scene, before, after in zip(batch, renders, reconstruct(pipe.vae, renders), strict=True):
            values["vae_psnr"].append(psnr(before, after))
            if scene.style == "photo":
                values["vae_psnr_photo"].append(psnr(before, after))
    return {name: mean(numbers) for name, numbers in values.items()}


def map_iou(pipe: Pipeline, sprites: Sprites, count: int) -> dict[str, float]:
    """Mean IoU of a word's mask with the true one.

    Held-out renders are noised to the middle of the schedule and go through the UNet once. The mask of the object's
    word is of the sites of stride 1 and 2, at threshold .3, with the max-pool of the published masks and without.
    """
    pooled: list[float] = []
    unpooled: list[float] = []
    for i, scene in enumerate(dataset(EXAM_SEED, count, held_out=True)):
        x0 = pipe.vae.scale(pipe.vae.encode(render_batch([scene], sprites))[0])
        t = pipe.scheduler.config.num_train_timesteps // 2
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(i))
        x, context = pipe.scheduler.add_noise(x0, noise, torch.tensor([t])), pipe.text(scene.caption).tokens
        latent_size = (x.shape[-2], x.shape[-1])
        for thing in scene.things:
            indicator = token_indicator(pipe.text.prompt(scene.caption), [thing.name])
            accumulator = HeatmapAccumulator(indicator, latent_size, SiteFilter(strides=(1, 2)))
            with torch.no_grad():
                pipe.unet(x, t, context, record_heatmaps(accumulator, fused))
            true = torch.from_numpy(render(scene, sprites).masks[thing.name])
            size = (true.shape[0], true.shape[1])
            heat = accumulator.mean[0]
            pooled.append(iou(heatmap_to_mask(heat, size, 0.3), true))
            unpooled.append(iou(heatmap_to_mask(heat, size, 0.3, pool=False), true))
    return {"map_iou": mean(pooled), "map_iou_unpooled": mean(unpooled)}


def main() -> int:
    """Runs the report from the command line and returns the exit status."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m minip2p.evaluation.tiny_report", description=description)
    parser.add_argument("--model", type=Path, help="the folder of a model (default: the model that ships)")
    parser.add_argument("--work", type=Path, default=Path(".train"), help="the folder of the sprites (default .train)")
    parser.add_argument("--cases", type=int, default=200, help="cases of each kind (default 200)")
    parser.add_argument("--steps", type=int, default=DDIMScheduler.default_steps, help="steps of each run (default 50)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/report"), help="the folder of the contact sheets")
    options = parser.parse_args()
    if options.cases < 1:
        return fail(f"--cases must be at least 1, not {options.cases}")
    return run_guarded(lambda: report(options))


def report(options: argparse.Namespace) -> None:
    """Measures and prints the table and the line of JSON. A full report on the model that ships updates its card."""
    pipe, cases, steps = load(options.model), options.cases, options.steps
    pipe.scheduler.timesteps(steps)  # raises ValueError for an impossible number of steps before anything runs
    sprites = Sprites.load(fetch_sprites(options.work / "sprites"))
    options.out.mkdir(parents=True, exist_ok=True)
    table = vae_psnr(pipe, sprites, cases) | map_iou(pipe, sprites, cases)
    table |= judge_figures(pipe, Judge.load(), sprites, cases)
    figures, generated = generation_figures(options.model, cases, steps, options.out)
    table |= figures | {"frechet": generated_distance(pipe, Judge.load(), sprites, generated)}
    text = card_table(table, cases, steps, pipe.default_guidance)
    print(text)
    if options.model is None and (cases, steps) == FULL_REPORT and CARD.exists():  # an installed package has no card
        write_card(CARD, text)
    values = {name: None if math.isnan(value) else round(value, 4) for name, value in table.items()}
    print(json.dumps(values | {"cases": cases}))


def judge_figures(pipe: Pipeline, judge: Judge, sprites: Sprites, cases: int) -> dict[str, float]:
    """How well the judge sees held-out renders: as they are, and encoded and decoded by the VAE (`…_decoded`)."""
    count = max(6 * cases, 40)  # scenes: only one in seven has a given attribute
    table = judge_metrics(examine(judge, sprites, count=count), judge.config.attributes)
    decoded = examine(judge, sprites, count=count, transform=lambda renders: reconstruct(pipe.vae, renders))
    decoded_table = judge_metrics(decoded, judge.config.attributes)
    return table | {f"{name}_decoded": value for name, value in decoded_table.items()}


def generation_figures(
    folder: Path | None, count: int, steps: int, out: Path
) -> tuple[dict[str, float], list[tuple[Scene, Image.Image]]]:
    """What the judge finds in generated and edited pictures, by the model in a folder. Writes the contact sheets.

    Returns the pictures generated for the captions of scenes as well.
    """
    swaps, pairs = list(swap_cases(count)), list(held_out_scenes(count, 2))
    different_swaps = {(old, new, scene.things[0].colour, scene.background) for scene, (_, old, new) in swaps}
    different_pairs = {frozenset(thing.name for thing in scene.things) for scene in pairs}
    table: dict[str, float] = {"different_swaps": len(different_swaps), "different_pairs": len(different_pairs)}
    kinds: list[tuple[str, Measure, Sequence[Any], int]] = [  # name, measure, cases, columns of the contact sheet
        ("swaps", measure_swap, swaps, 10),
        ("pairs", measure_two_objects, pairs, 8),
        ("graded", measure_reweighting, graded_cases(count), 9),
    ]
    generated: list[tuple[Scene, Image.Image]] = []
    with WorkerPool(folder, steps) as pool:
        for name, measure, cases, columns in kinds:
            results = pool.run_all(measure, cases)
            table |= case_means(results)
            if name != "graded":
                scenes = pairs if name == "pairs" else [scene for scene, _ in swaps]
                generated += [(scene, images[0]) for scene, (_, images) in zip(scenes, results, strict=True)]
            panels = [(image, "") for _, images in results[:SHEET_CASES] for image in images]
            grid(panels, columns=columns, min_side=128).save(out / f"{name}.png")
    table["swap_gain_db"] = table["psnr_swap"] - table["psnr_alone"]
    table["swap_blend_gain_db"] = table["psnr_blend"] - table["psnr_alone"]
    return table, generated


def generated_distance(
    pipe: Pipeline, judge: Judge, sprites: Sprites, generated: Sequence[tuple[Scene, Image.Image]]
) -> float:
    """The Fréchet distance of pictures generated for the captions of scenes, and of these scenes' renders, encoded and
    decoded by the VAE. A picture's features are the means over its cells of the judge's (`Judge.features`)."""
    real, of_generated = [], []
    for scene, image in generated:
        decoded = reconstruct(pipe.vae, render_batch([scene], sprites))[0]
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
        real.append(judge.features(decoded).mean(0))
        of_generated.append(judge.features(picture).mean(0))
    return frechet_distance(torch.stack(of_generated), torch.stack(real)) if len(real) > 1 else math.nan


def case_means(results: Sequence[CaseResult]) -> dict[str, float]:
    """The mean of each figure over the cases that have it."""
    names = dict.fromkeys(name for case_figures, _ in results for name in case_figures)
    return {name: mean(case_figures.get(name) for case_figures, _ in results) for name in names}


def card_table(table: Mapping[str, float], cases: int, steps: int, guidance: float) -> str:
    """The table in markdown: each figure, its target if it has one, and what it measures."""
    lines = [
        f"{cases} cases of each kind, {steps} steps, guidance {guidance}.",
        "",
        "| figure | measured | target | what it measures |",
        "|---|---|---|---|",
    ]
    for name, (target, meaning) in MEANINGS.items():
        if name in table:
            value = table[name]
            lines.append(f"| {name} | {f'{value:.3f}' if isinstance(value, float) else value} | {target} | {meaning} |")
    return "\n".join(lines)


def write_card(card: Path, table: str) -> None:
    """Replaces the table between the two marks in a model's card."""
    before, _, rest = read_text(card).partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    write_text(card, f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}")


if __name__ == "__main__":
    sys.exit(main())
