"""The cases of the report on the model that ships, and how each kind is measured.

Every case is sampled with its own number as the seed and read by the judge. It needs nothing else but its scene, so the
cases are shared among processes (`minip2p.evaluation.workers`).

Axes: H W pixels of a picture; c h w latents.
"""

import re
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from minip2p.attention.contract import SiteFilter
from minip2p.attention.masks import heatmap_to_mask
from minip2p.evaluation.workers import CaseResult
from minip2p.io.images import to_pil
from minip2p.metrics.image import iou, mean, psnr
from minip2p.p2p.editing import run_edits
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import EditTarget, make_targets
from minip2p.pipeline import Pipeline
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunSettings, RunStart
from minip2p.tiny.judge import Judge
from minip2p.tiny.scenes import ANIMALS, THINGS, Scene, combination_held_out, dataset

EXAM_SEED = 9001  # of the scenes; the kinds of cases use this seed and the next three

NO_TAUS = 0.0, 0.0  # (cross, self): without Prompt-to-Prompt
PAPER_TAUS = EditOptions.cross_replace, EditOptions.self_replace  # the defaults, as in the paper
TAUS = 0.8, 0.8  # as the model's card recommends; chosen on scenes of another seed than the report's

WEIGHTS = (0.0, 1.0, 2.0)  # of a graded word
MARGIN = 0.05  # by how much its strength must rise in all, so that noise does not count as a rise

Swap = tuple[str, str, str]  # target prompt, source word, target word


def held_out_scenes(count: int, objects: int) -> Iterator[Scene]:
    """Held-out scenes whose captions name all that is checked, the place and the colours included."""
    return dataset(EXAM_SEED + objects, count, held_out=True, objects=objects, name_place=True, name_colour=True)


def check_scene(judge: Judge, scene: Scene, picture: Tensor) -> dict[str, float]:
    """What the judge finds right in a picture 3 H W, 1 or 0 each.

    object: the likeliest objects are the scene's. object_strict: the objects that are likelier present than absent are
    the scene's. background, style, and colour; a sketch has no colour.
    """
    verdict = judge(picture[None])
    objects = {thing.name for thing in scene.things}
    named = verdict.background_and_style()[0]
    results = {
        "object": float(verdict.likeliest_objects(len(objects))[0] == objects),
        "object_strict": float(verdict.detected_objects()[0] == objects),
        "background": float(named["background"] == scene.background),
        "style": float(named["style"] == scene.style),
    }
    coloured = [thing for thing in scene.things if thing.colour and scene.style != "sketch"]
    if coloured:
        colours = judge.config.colours
        correct = [colours[int(verdict.colour(thing.name)[0].argmax())] == thing.colour for thing in coloured]
        results["colour"] = mean(map(float, correct))
    return results


def swap_target(scene: Scene, number: int) -> Swap | None:
    """The swap of a scene's object for another of its kind, or None: the first, from `number` on, whose combination
    with the colour and place is held out as well."""
    (thing,) = scene.things
    kin = ANIMALS if thing.name in ANIMALS else THINGS
    first = number % len(kin)
    others = [name for name in (*kin[first:], *kin[:first]) if name != thing.name]
    new = next((name for name in others if combination_held_out(name, thing.colour, scene.background)), None)
    if new is None:
        return None
    article = "an" if new[0] in "aeiou" else "a"
    target, count = re.subn(rf"\ban? {thing.name}\b", f"{article} {new}", scene.caption, count=1)
    if not count:  # a colour stands between the article and the thing
        target = re.sub(rf"\b{thing.name}\b", new, scene.caption, count=1)
    return target, thing.name, new


def swap_cases(count: int) -> Iterator[tuple[Scene, Swap]]:
    """Held-out scenes of one object, each with its swap."""
    cases = ((scene, swap_target(scene, i)) for i, scene in enumerate(held_out_scenes(10 * count, 1)))
    return islice(((scene, swap) for scene, swap in cases if swap is not None), count)


def swap_targets(pipe: Pipeline, start: RunStart, swap: Swap) -> list[EditTarget]:
    """The target of a swap without P2P (only the seed is the same), with it at PAPER_TAUS, at TAUS, and at TAUS with a
    local blend."""
    prompt, source_word, target_word = swap
    blend = LocalBlend((source_word,), (target_word,), pool=False)
    options = [
        EditOptions(cross_replace=cross, self_replace=self_, local_blend=local_blend)
        for (cross, self_), local_blend in ((NO_TAUS, None), (PAPER_TAUS, None), (TAUS, None), (TAUS, blend))
    ]
    return [make_targets(pipe.components, start, [prompt], each)[0] for each in options]


def measure_swap(pipe: Pipeline, judge: Judge, number: int, case: tuple[Scene, Swap], steps: int) -> CaseResult:
    """Measures the generation of a one-object prompt, and the swap of its object.

    The background, on which psnr is measured, is where the judge sees no object in any picture: neither in the source
    nor in the four targets.
    """
    scene, swap = case
    _, old, new = swap
    start = pipe.prepare(scene.caption, RunSettings(seed=number, steps=steps))
    runs = run_edits(pipe.components, start, swap_targets(pipe, start, swap))
    assert runs[0].source_run is not None
    source = runs[0].source_run.finish()
    pictures = [run.picture for run in (source, *runs)]
    figures = check_scene(judge, scene, pictures[0])
    verdict = judge(torch.stack(pictures))
    background = ~(verdict.foreground > 0.5).any(0)
    for i, name in enumerate(("alone", "usual", "swap", "blend"), 1):
        figures[f"{name}_success"] = float(verdict.likeliest_objects(1)[i] == {new})
        figures[f"psnr_{name}"] = psnr(pictures[0], pictures[i], background)
    if figures["swap_success"]:
        figures["psnr_swap_right"] = figures["psnr_swap"]
    if figures["blend_success"]:
        figures["psnr_blend_right"] = figures["psnr_blend"]
    if figures["object"]:
        heat, true = source.heatmaps([old], sites=SiteFilter(strides=(1, 2))).mean[0], verdict.masks(old)[0] > 0.5
        size = (true.shape[0], true.shape[1])
        figures["mask_iou_generated"] = iou(heatmap_to_mask(heat, size, 0.3), true)
        figures["mask_iou_generated_unpooled"] = iou(heatmap_to_mask(heat, size, 0.3, pool=False), true)
    return figures, [to_pil(picture) for picture in pictures]


def measure_two_objects(pipe: Pipeline, judge: Judge, number: int, scene: Scene, steps: int) -> CaseResult:
    """Measures whether both objects of a two-object prompt are right."""
    picture = sample(pipe.components, pipe.prepare(scene.caption, RunSettings(seed=number, steps=steps))).picture
    results = check_scene(judge, scene, picture)
    figures = {"two_objects": results["object"], "two_objects_strict": results["object_strict"]}
    return figures, [to_pil(picture)]


def graded_cases(count: int) -> list[tuple[Scene, str]]:
    """Held-out photographs with a graded word at half its strength: fog, flowers and snow in turn."""
    cases = []
    for i in range(count):
        graded = ("fog", "flowers", "snow")[i % 3]
        scenes = dataset(
            EXAM_SEED + 3,
            1,
            start=i,
            held_out=True,
            objects=1,
            background="beach" if graded == "flowers" else "street",
            attribute=graded,
            style="photo",
            strength=0.5,
            name_place=True,
        )
        cases.append((next(scenes), graded))
    return cases


def measure_reweighting(pipe: Pipeline, judge: Judge, number: int, case: tuple[Scene, str], steps: int) -> CaseResult:
    """Measures a graded word at the rising WEIGHTS: whether the strength that the judge reads (not clamped to [0, 1])
    rises with each weight, and by MARGIN in all; and by how much it rises in all."""
    scene, graded = case
    start = pipe.prepare(scene.caption, RunSettings(seed=number, steps=steps))
    options = [EditOptions(reweight={graded: weight}) for weight in WEIGHTS]
    targets = [make_targets(pipe.components, start, [scene.caption], each)[0] for each in options]
    runs = run_edits(pipe.components, start, targets)
    pictures = torch.stack([run.picture for run in runs])
    with torch.no_grad():
        strength = judge.network(pictures).strength[:, judge.config.attributes.index(graded)]
    rise = float(strength[-1] - strength[0])
    is_monotone = bool((strength.diff() > 0).all()) and rise >= MARGIN
    figures = {"reweight_monotone": float(is_monotone), "reweight_rise": rise}
    return figures, [to_pil(picture) for picture in pictures]
