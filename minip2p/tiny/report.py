"""How good is the model that ships? python -m minip2p.tiny.report

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

from minip2p.checkpoint import shipped
from minip2p.errors import fail, guarded
from minip2p.mask import HeatSum, columns, mask_of
from minip2p.metrics import iou, mean, psnr
from minip2p.model import Model, load
from minip2p.tiny.cases import (
    EXAM_SEED,
    MARGIN,
    Case,
    Found,
    graded_cases,
    measured,
    prompts,
    reweighting,
    swap,
    swap_cases,
    two_objects,
)
from minip2p.tiny.judge import Judge
from minip2p.tiny.judge_train import examine
from minip2p.tiny.scenes import Sprites, dataset, fetch_sprites, render
from minip2p.tiny.train import pictures
from minip2p.trajectory import watching
from minip2p.viz import grid

CARD = shipped("tiny").parent / "README.md"
# Each figure of the table: what is asked of it, and what it is.
MEANINGS = MappingProxyType({
    "vae_psnr": ("26", "reconstruction of held-out renders, dB"),
    "vae_psnr_photo": ("28", "… of those in photo style, dB"),
    "map_iou": ("0.40", "mask of an object's word on noised held-out renders against its true mask, IoU; max-pooled as "
                        "the published masks are, so that a perfect map would get .41"),
    "map_iou_unpooled": ("", "… without the max-pool, where a perfect map would get .73"),
    "judge_object": ("0.97", "the judge itself, on held-out renders: all objects right"),
    "judge_colour": ("0.97", "… colour right"),
    "judge_background": ("0.97", "… place right"),
    "judge_style": ("0.97", "… style right"),
    "judge_iou": ("0.90", "… segmentation of the named object, IoU"),
    "judge_strength": ("0.95", "… rank correlation of a graded word's strength, the least of the three"),
    "object": ("0.90", "one-object prompts: the object right"),
    "colour": ("0.90", "… the colour right"),
    "background": ("0.95", "… the place right"),
    "style": ("0.95", "… the style right"),
    "two_objects": ("0.70", "two-object prompts: both right"),
    "swap_success": ("0.85", "swaps to a combination that is held out too, at the τ that the card recommends: the new "
                             "object is what the judge sees"),
    "usual_success": ("", "the same at the paper's τ, cross .8 and self .4"),
    "blend_success": ("", "the same at the card's τ with blending, by masks that are not max-pooled"),
    "alone_success": ("", "the same without P2P"),
    "psnr_alone": ("", "background, against the source, of the same seed without P2P, dB"),
    "psnr_usual": ("", "… with P2P at the paper's τ, dB"),
    "psnr_swap": ("", "… at the card's τ, dB"),
    "psnr_blend": ("", "… with blending, dB"),
    "swap_gain_db": ("2", "psnr_swap − psnr_alone"),
    "swap_blend_gain_db": ("8", "psnr_blend − psnr_alone"),
    "mask_iou_generated": ("", "mask of the object's word against the judge's, where the object is right, IoU"),
    "reweight_monotone": ("0.85", f"a graded word at weights 0, 1, 2: strength rises each time, by {MARGIN} in all"),
    "reweight_rise": ("", "… by how much, of 1"),
})  # fmt: skip


def vae_psnr(model: Model, sprites: Sprites, count: int) -> dict[str, float]:
    """Reconstruction of held-out renders, all styles and photographs alone."""
    rows: dict[str, list[float]] = {"vae_psnr": [], "vae_psnr_photo": []}
    scenes = list(dataset(EXAM_SEED, count, held_out=True))
    for start in range(0, count, 20):
        some = scenes[start : start + 20]
        x = pictures(some, sprites)
        with torch.no_grad():
            y = model.vae.decode(model.vae.encode(x)[0]).clamp(-1, 1)
        for scene, a, b in zip(some, x, y, strict=True):
            rows["vae_psnr"].append(psnr(a, b))
            if scene.style == "photo":
                rows["vae_psnr_photo"].append(psnr(a, b))
    return {name: mean(values) for name, values in rows.items()}


def map_iou(model: Model, sprites: Sprites, count: int) -> dict[str, float]:
    """Held-out renders noised to the middle of the schedule and run once: the mask of the object's word (sites of
    stride 1 and 2, threshold .3) against its true mask, mean IoU; with the published masks' max-pool and without."""
    pooled: list[float] = []
    unpooled: list[float] = []
    for i, scene in enumerate(dataset(EXAM_SEED, count, held_out=True)):
        x0 = model.vae.scale(model.vae.encode(pictures([scene], sprites))[0])
        t = model.sched.config.num_train_timesteps // 2
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(i))
        x, context = model.sched.add_noise(x0, noise, torch.tensor([t])), model.text(scene.caption)
        for thing in scene.things:
            latent = (x.shape[-2], x.shape[-1])
            heat = HeatSum(columns(model.text.prompt(scene.caption), [thing.name]), latent, (1, 2))
            with torch.no_grad():
                model.unet(x, t, context, watching(heat, lambda q, k, v, site: F.scaled_dot_product_attention(q, k, v)))
            true = torch.from_numpy(render(scene, sprites).masks[thing.name])
            for values, pool in ((pooled, True), (unpooled, False)):
                values.append(iou(mask_of(heat.mean[0], (true.shape[0], true.shape[1]), 0.3, pool), true))
    return {"map_iou": mean(pooled), "map_iou_unpooled": mean(unpooled)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="a folder (default: the embedded model)")
    parser.add_argument("--work", type=Path, default=Path(".train"), help="where the sprites are")
    parser.add_argument("--cases", type=int, default=200, help="prompts of each kind (default 200)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/report"), help="folder of the contact sheets")
    options = parser.parse_args()
    if options.cases < 1:
        return fail(f"--cases must be at least 1, not {options.cases}")
    return guarded(lambda: report(options))


def report(options: argparse.Namespace) -> None:
    """Measures, writes the table of the card that ships (of the model that ships), prints the JSON line."""
    model, n, steps = load(options.model), options.cases, options.steps
    sprites = Sprites.load(fetch_sprites(options.work / "sprites"))
    options.out.mkdir(parents=True, exist_ok=True)
    table = vae_psnr(model, sprites, n) | map_iou(model, sprites, n)
    if shipped("judge").is_dir():
        table |= judged(options.model, sprites, n, steps, options.out)
    else:
        print("there is no weights/judge: only what needs no judge is measured")
    if options.model is None and CARD.exists():
        write_card(CARD, table, n, steps, model.guidance)
    row = {name: None if math.isnan(value) else round(value, 4) for name, value in table.items()}
    print(json.dumps(row | {"cases": n}))


def judged(folder: Path | None, sprites: Sprites, n: int, steps: int, out: Path) -> dict[str, float]:
    """All that the judge sees, and how well the judge itself sees. Writes the contact sheets."""
    judge = Judge.load()
    exam = examine(judge, sprites, count=max(6 * n, 40))
    table = {f"judge_{name}": exam[name][0] for name in ("object", "colour", "background", "style", "iou")}
    table["judge_strength"] = min(exam[f"strength_{name}"][0] for name in judge.config.attributes)
    kinds: list[tuple[str, Case, Sequence[Any], int]] = [
        ("swaps", swap, list(swap_cases(n)), 10),
        ("pairs", two_objects, list(prompts(n, 2)), 8),
        ("graded", reweighting, graded_cases(n), 9),
    ]
    for name, case, cases, width in kinds:
        found = measured(case, cases, folder, steps)
        table |= means(found)
        views = [(view, "") for _, views in found[:64] for view in views]
        grid(views, columns=width, least=128).save(out / f"{name}.png")
    table["swap_gain_db"] = table["psnr_swap"] - table["psnr_alone"]
    table["swap_blend_gain_db"] = table["psnr_blend"] - table["psnr_alone"]
    return table


def means(found: list[Found]) -> dict[str, float]:
    """Each figure's mean over the cases that have it."""
    names = dict.fromkeys(name for figures, _ in found for name in figures)
    return {name: mean([figures[name] for figures, _ in found if name in figures]) for name in names}


def write_card(card: Path, table: dict[str, float], cases: int, steps: int, guidance: float) -> None:
    """Puts the table between the card's two marks: each figure beside what is asked of it, if anything is."""
    lines = [f"{cases} cases of each kind, {steps} steps, guidance {guidance}.", "",
             "| figure | measured | asked | what it is |", "|---|---|---|---|"]  # fmt: skip
    for name, (asked, meaning) in MEANINGS.items():
        if name in table:
            lines.append(f"| {name} | {table[name]:.3f} | {asked} | {meaning} |")
    before, _, rest = card.read_text(encoding="utf-8").partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    said = "\n".join(lines)
    card.write_text(f"{before}<!-- table -->\n{said}\n<!-- end of table -->{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
