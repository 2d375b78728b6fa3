"""How good is the model that ships? python -m minip2p.tiny.report

Measures on held-out combinations, with the judge, and writes the table of weights/README.md, contact sheets, and last
one JSON line. Everything is fixed beforehand: case i is the i-th scene of a seed of its own (EXAM_SEED and the three
after it; the judge's are its own), and is sampled with seed i.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.checkpoint import shipped
from minip2p.edit import plan_edit
from minip2p.errors import fail, guarded
from minip2p.mask import Blend, Blending, HeatSum, columns, mask_of
from minip2p.metrics import iou, mean, psnr
from minip2p.model import Model, bar, load
from minip2p.replay import Target, edit
from minip2p.tiny.judge import Judge
from minip2p.tiny.judge_train import examine
from minip2p.tiny.scenes import ANIMALS, THINGS, Scene, Sprites, combination_held_out, dataset, fetch_sprites, render
from minip2p.tiny.train import pictures
from minip2p.trajectory import as_image, sample, watching
from minip2p.viz import Panel, grid

EXAM_SEED = 9001
WEIGHTS = (0.0, 1.0, 2.0)  # of a graded word
TAUS = 0.8, 0.8  # cross and self that the card recommends: chosen on scenes of another seed than the report's
MARGIN = 0.05  # by which its strength must rise at least, so that noise does not pass for it
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


def prompts(count: int, objects: int) -> Iterator[Scene]:
    """Held-out scenes whose captions say all that is asked: place and colour are named."""
    return dataset(EXAM_SEED + objects, count, held_out=True, objects=objects, name_place=True, name_colour=True)


def right(judge: Judge, scene: Scene, picture: Tensor) -> dict[str, float]:
    """What the judge finds right in a picture, 1 or 0: its objects, colours (sketches have none), place and style."""
    verdict = judge(picture[None])
    found = {
        "object": float(verdict.present(len(scene.things))[0] == {thing.name for thing in scene.things}),
        "background": float(verdict.named()[0]["background"] == scene.background),
        "style": float(verdict.named()[0]["style"] == scene.style),
    }
    painted = [thing for thing in scene.things if thing.colour and scene.style != "sketch"]
    if painted:
        colours = judge.config.colours
        found["colour"] = mean([float(colours[int(verdict.colour(t.name)[0].argmax())] == t.colour) for t in painted])
    return found


def swapped(scene: Scene, number: int) -> tuple[str, str, str] | None:
    """(target prompt, source word, target word): the object exchanged for another of its kind, the first of those for
    which the combination with colour and place is held out too, counted on from `number`; None where there is none."""
    (thing,) = scene.things
    kin = ANIMALS if thing.name in ANIMALS else THINGS
    others = [name for name in (*kin[number % len(kin) :], *kin[: number % len(kin)]) if name != thing.name]
    new = next((name for name in others if combination_held_out(name, thing.colour, scene.background)), None)
    if new is None:
        return None
    article = "an" if new[0] in "aeiou" else "a"
    target, count = re.subn(rf"\ban? {thing.name}\b", f"{article} {new}", scene.caption, count=1)
    if not count:  # a colour stands between the article and the thing
        target = re.sub(rf"\b{thing.name}\b", new, scene.caption, count=1)
    return target, thing.name, new


def swap_cases(count: int) -> Iterator[tuple[Scene, tuple[str, str, str]]]:
    """Held-out one-object scenes, each with its swap, which is held out as well."""
    cases = ((scene, swapped(scene, i)) for i, scene in enumerate(prompts(10 * count, 1)))
    return islice(((scene, swap) for scene, swap in cases if swap is not None), count)


def four_targets(
    model: Model, source: str, target: str, words: tuple[str, str], noise: Tensor, steps: int
) -> list[Target]:
    """The same target without P2P (the same seed alone), with it at the paper's τ, at TAUS, and there with blending."""
    old, new = model.text.prompt(source), model.text.prompt(target)
    alone, usual, edited = (plan_edit(old, new, steps, cross=cross, self_=self_)
                            for cross, self_ in ((0.0, 0.0), (0.8, 0.4), TAUS))  # fmt: skip
    size = (noise.shape[-2], noise.shape[-1])
    blend = Blending.begin(Blend((words[0],), (words[1],), pool=False), old, new, steps, size, model.unet.sites)
    return [Target(target, alone), Target(target, usual), Target(target, edited), Target(target, edited, blend)]


def swaps(model: Model, judge: Judge, count: int, steps: int) -> tuple[dict[str, float], list[list[Tensor]]]:
    """Generation of one-object prompts, and the swap of each one's object. The background is what the judge takes for
    no object in any of the pictures: the source and the four targets."""
    rows: dict[str, list[float]] = {}
    shown = []
    for i, (scene, (target, old, new)) in enumerate(bar(list(swap_cases(count)))):
        start = model.start(scene.caption, seed=i, steps=steps)
        targets = four_targets(model, scene.caption, target, (old, new), start.noise, steps)
        runs = edit(model, start, targets)
        source, blending = runs[0].source, targets[3].blending
        assert source is not None and blending is not None
        views = [run.picture for run in (source, *runs)]
        found = right(judge, scene, views[0])
        verdict = judge(torch.stack(views))
        outside = ~(verdict.thing > 0.5).any(0)
        for name, n in (("alone", 1), ("usual", 2), ("swap", 3), ("blend", 4)):
            found[f"{name}_success"] = float(verdict.present(1)[n] == {new})
            found[f"psnr_{name}"] = psnr(views[0], views[n], outside)
        if found["object"]:
            size = (outside.shape[0], outside.shape[1])
            seen = mask_of(blending.source.total[0], size, blending.blend.threshold, blending.blend.pool)
            found["mask_iou_generated"] = iou(seen, verdict.masks(old)[0] > 0.5)
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
        shown.append(views)
    table = {name: mean(values) for name, values in rows.items()}
    table["swap_gain_db"] = table["psnr_swap"] - table["psnr_alone"]
    table["swap_blend_gain_db"] = table["psnr_blend"] - table["psnr_alone"]
    return table, shown


def two_objects(model: Model, judge: Judge, count: int, steps: int) -> tuple[dict[str, float], list[Tensor]]:
    """Both objects of two-object prompts right."""
    views = []
    for i, scene in enumerate(bar(list(prompts(count, 2)))):
        views.append((scene, sample(model, model.start(scene.caption, seed=i, steps=steps)).picture))
    return {"two_objects": mean([right(judge, scene, view)["object"] for scene, view in views])}, [v for _, v in views]


def reweighting(model: Model, judge: Judge, count: int, steps: int) -> dict[str, float]:
    """A graded word at rising weights: whether its measured strength (in [0, 1], not clamped) rises at each, and by
    MARGIN in all; and the mean of that rise."""
    rising, rise = [], []
    for i in bar(range(count)):
        graded = ("fog", "flowers", "snow")[i % 3]
        place = "beach" if graded == "flowers" else "street"
        scene = next(dataset(EXAM_SEED + 3, 1, start=i, held_out=True, objects=1, background=place, attribute=graded,
                             style="photo", strength=0.5, name_place=True))  # fmt: skip
        start, old = model.start(scene.caption, seed=i, steps=steps), model.text.prompt(scene.caption)
        targets = [
            Target(scene.caption, plan_edit(old, old, steps, reweight={_last(graded, scene): w})) for w in WEIGHTS
        ]
        views = torch.stack([run.picture for run in edit(model, start, targets)])
        with torch.no_grad():
            strength = judge.network(views).strength[:, judge.config.attributes.index(graded)]
        rise.append(float(strength[-1] - strength[0]))
        rising.append(float((strength.diff() > 0).all() and rise[-1] >= MARGIN))
    return {"reweight_monotone": mean(rising), "reweight_rise": mean(rise)}


def _last(word: str, scene: Scene) -> tuple[str, int]:
    """The last place of the word in the caption ("on the snow … in falling snow")."""
    return word, scene.caption.split().count(word) or 1


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
        table |= judged(model, sprites, n, steps, options.out)
    else:
        print("there is no weights/judge: only what needs no judge is measured")
    if options.model is None and CARD.exists():
        write_card(CARD, table, n, steps, model.guidance)
    row = {name: None if math.isnan(value) else round(value, 4) for name, value in table.items()}
    print(json.dumps(row | {"cases": n}))


def judged(model: Model, sprites: Sprites, n: int, steps: int, out: Path) -> dict[str, float]:
    """All that the judge sees, and how well the judge itself sees. Writes the contact sheets."""
    judge = Judge.load()
    exam = examine(judge, sprites, count=max(6 * n, 40))
    table = {f"judge_{name}": exam[name][0] for name in ("object", "colour", "background", "style", "iou")}
    table["judge_strength"] = min(exam[f"strength_{name}"][0] for name in judge.config.attributes)
    swap_table, shown = swaps(model, judge, n, steps)
    pair_table, pairs = two_objects(model, judge, n, steps)
    grid([panel(view) for views in shown[:32] for view in views], columns=10, least=128).save(out / "swaps.png")
    grid([panel(view) for view in pairs[:64]], columns=8, least=128).save(out / "pairs.png")
    return table | swap_table | pair_table | reweighting(model, judge, n, steps)


def panel(view: Tensor) -> Panel:
    """A picture in [-1, 1], 3 H W, for a contact sheet."""
    return as_image(view), ""


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
