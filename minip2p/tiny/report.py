"""How good is the model that ships? python -m minip2p.tiny.report

Measures on held-out combinations, with the judge, and writes the table of weights/README.md, contact sheets, and last
one JSON line. Seeds are fixed: case i is the i-th scene of EXAM_SEED and is sampled with seed i.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.checkpoint import shipped
from minip2p.edit import plan_edit
from minip2p.mask import Blend, Blending, HeatSum, columns, mask_of
from minip2p.model import Model, bar, load
from minip2p.tiny.judge import Judge
from minip2p.tiny.judge_train import examine
from minip2p.tiny.scenes import ANIMALS, THINGS, Scene, Sprites, dataset, fetch_sprites, render
from minip2p.tiny.train import pictures
from minip2p.trajectory import Target, Trajectory, edit, sample, watching
from minip2p.viz import Panel, grid

EXAM_SEED = 9001
CAP = 60.0  # dB: pictures that are equal have no PSNR
WEIGHTS = (0.0, 1.0, 2.0)  # of a graded word
CARD = shipped("tiny").parent / "README.md"


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], 3 H W, over the pixels of a mask H W; at most CAP."""
    error = (a - b).square()
    mean = error.mean() if where is None else error[:, where].mean()
    return min(CAP, float(10 * torch.log10(4 / mean.clamp_min(1e-12))))


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


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


def map_iou(model: Model, sprites: Sprites, count: int) -> float:
    """Held-out renders noised to the middle of the schedule and run once: the mask of the object's word (sites of
    stride 1 and 2, threshold .3) against its true mask, mean IoU."""
    values = []
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
            values.append(iou(mask_of(heat.mean[0], (true.shape[0], true.shape[1]), 0.3), true))
    return mean(values)


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


def swapped(scene: Scene, number: int) -> tuple[str, str, str]:
    """(target prompt, source word, target word): the object exchanged for the next of its kind."""
    word = scene.things[0].name
    kin = ANIMALS if word in ANIMALS else THINGS
    new = kin[(kin.index(word) + 1 + number % (len(kin) - 1)) % len(kin)]
    article = {
        f"a {word}": f"{'an' if new[0] in 'aeiou' else 'a'} {new}",
        f"an {word}": f"{'an' if new[0] in 'aeiou' else 'a'} {new}",
    }
    text = scene.caption
    for old, put in article.items():
        if old in text:
            return text.replace(old, put, 1), word, new
    return text.replace(word, new, 1), word, new  # a colour stands between the article and the thing


def three_targets(
    model: Model, source: str, target: str, words: tuple[str, str], noise: Tensor, steps: int
) -> list[Target]:
    """The same target without P2P (the same seed alone), with it, and with blending."""
    old, new = model.text.prompt(source), model.text.prompt(target)
    alone = plan_edit(old, new, steps, cross=0.0, self_=0.0)
    edited = plan_edit(old, new, steps)
    size = (noise.shape[-2], noise.shape[-1])
    blend = Blending.begin(Blend((words[0],), (words[1],)), old, new, steps, size, model.unet.sites)
    return [Target(target, alone), Target(target, edited), Target(target, edited, blend)]


def picture(run: Trajectory) -> Tensor:
    return run.parts.decode(run.latents[-1:])[0]


def swaps(model: Model, judge: Judge, count: int, steps: int) -> tuple[dict[str, float], list[list[Tensor]]]:
    """Generation of one-object prompts, and the swap of each one's object."""
    rows: dict[str, list[float]] = {}
    shown = []
    for i, scene in enumerate(bar(list(prompts(count, 1)))):
        target, old, new = swapped(scene, i)
        start = model.start(scene.caption, seed=i, steps=steps)
        runs = edit(model, start, three_targets(model, scene.caption, target, (old, new), start.noise, steps))
        source = runs[0].source
        assert source is not None
        views = [picture(run) for run in (source, *runs)]
        found = right(judge, scene, views[0])
        verdict = judge(torch.stack(views))
        outside = ~((verdict.masks(old) > 0.5).any(0) | (verdict.masks(new) > 0.5).any(0))
        alone, edited, blended = (psnr(views[0], view, outside) for view in views[1:])
        found |= {"swap_success": float(verdict.present(1)[2] == {new}), "psnr_alone": alone, "psnr_swap": edited,
                  "psnr_blend": blended, "blend_success": float(verdict.present(1)[3] == {new})}  # fmt: skip
        mask = runs[2].mask
        if found["object"] and mask is not None:
            large = F.interpolate(mask[None, None].float(), outside.shape)[0, 0] > 0.5
            found["mask_iou_generated"] = iou(large, verdict.masks(old)[0] > 0.5)
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
        views.append((scene, picture(sample(model, model.start(scene.caption, seed=i, steps=steps)))))
    return {"two_objects": mean([right(judge, scene, view)["object"] for scene, view in views])}, [v for _, v in views]


def reweighting(model: Model, judge: Judge, count: int, steps: int) -> dict[str, float]:
    """A graded word at rising weights: whether its measured strength never falls."""
    rising = []
    for i in bar(range(count)):
        graded = ("fog", "flowers", "snow")[i % 3]
        place = "beach" if graded == "flowers" else "street"
        scene = next(dataset(EXAM_SEED + 3, 1, start=i, held_out=False, objects=1, background=place, attribute=graded,
                             style="photo", strength=0.5, name_place=True))  # fmt: skip
        start, old = model.start(scene.caption, seed=i, steps=steps), model.text.prompt(scene.caption)
        targets = [
            Target(scene.caption, plan_edit(old, old, steps, reweight={_last(graded, scene): w})) for w in WEIGHTS
        ]
        views = torch.stack([picture(run) for run in edit(model, start, targets)])
        strength = judge(views).strength[:, judge.config.attributes.index(graded)]
        rising.append(float((strength.diff() >= 0).all()))
    return {"reweight_monotone": mean(rising)}


def _last(word: str, scene: Scene) -> tuple[str, int]:
    """The last place of the word in the caption ("on the snow … in falling snow")."""
    return word, scene.caption.split().count(word) or 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="a folder (default: the embedded model)")
    parser.add_argument("--work", type=Path, default=Path(".train"), help="where the sprites are")
    parser.add_argument("--cases", type=int, default=200, help="prompts of each kind (default 200)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/report"), help="folder of the contact sheets")
    options = parser.parse_args()
    model, n, steps = load(options.model), options.cases, options.steps
    sprites = Sprites.load(fetch_sprites(options.work / "sprites"))
    options.out.mkdir(parents=True, exist_ok=True)
    table = vae_psnr(model, sprites, n) | {"map_iou": map_iou(model, sprites, n)}
    if shipped("judge").is_dir():
        table |= judged(model, sprites, n, steps, options.out)
    else:
        print("there is no weights/judge: only what needs no judge is measured")
    write_card(table, n, steps, model.guidance)
    print(json.dumps({name: round(value, 4) for name, value in table.items()} | {"cases": n}))


def judged(model: Model, sprites: Sprites, n: int, steps: int, out: Path) -> dict[str, float]:
    """All that the judge sees, and how well the judge itself sees. Writes the contact sheets."""
    judge = Judge.load()
    exam = examine(judge, sprites, count=max(n, 40))
    table = {f"judge_{name}": exam[name][0] for name in ("object", "colour", "background", "style", "iou")}
    swap_table, shown = swaps(model, judge, n, steps)
    pair_table, pairs = two_objects(model, judge, n, steps)
    grid([panel(view) for views in shown[:32] for view in views], columns=8, least=128).save(out / "swaps.png")
    grid([panel(view) for view in pairs[:64]], columns=8, least=128).save(out / "pairs.png")
    return table | swap_table | pair_table | reweighting(model, judge, n, steps)


def panel(view: Tensor) -> Panel:
    """A picture in [-1, 1], 3 H W, for a contact sheet."""
    return Image.fromarray(((view + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()), ""


def write_card(table: dict[str, float], cases: int, steps: int, guidance: float) -> None:
    """Puts the table between the card's two marks."""
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in table.items())
    said = f"{cases} cases of each kind, {steps} steps, guidance {guidance}\n\n| figure | value |\n|---|---|\n{rows}"
    before, _, rest = CARD.read_text(encoding="utf-8").partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    CARD.write_text(f"{before}<!-- table -->\n{said}\n<!-- end of table -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
