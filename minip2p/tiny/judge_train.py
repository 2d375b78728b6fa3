"""How the judge learns from renders and is examined on held-out ones: python -m minip2p.tiny.judge_train --work DIR

Every step draws new scenes, and spoils most of the pictures a little (blur, noise, brightness, JPEG), because what it
will judge comes out of an autoencoder. The examination is on renders as they are, of combinations never trained on.
"""

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from minip2p.errors import run_guarded
from minip2p.tiny.judge import FOLDER, Judge, JudgeConfig, Network, Reading, Verdict
from minip2p.tiny.loop import Training, cooldown, half_precision
from minip2p.tiny.scenes import Scene, Sprites, dataset, fetch_sprites, render

STEPS, BATCH, LR = 12000, 16, 1e-3


EXAM_SEED, EXAM_SCENES = 7001, 1200  # fixed before the first training


IGNORE_LABEL = -100  # what F.cross_entropy leaves out


@dataclass(frozen=True)
class Lesson:
    """Pictures b 3 H W in [-1, 1] with the truth: labels b H W (0 no object, else 1 + its place in the list),
    present b n (0 or 1), paint b n (colour, NONE where it cannot be told), background b, style b, strength b k."""

    pictures: Tensor
    labels: Tensor
    present: Tensor
    paint: Tensor
    background: Tensor
    style: Tensor
    strength: Tensor


def corrupt_picture(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture (H, W, 3) uint8 made a little worse, as an autoencoder might; one in four stays as it is."""
    if rng.random() < 0.25:
        return picture
    image = Image.fromarray(picture)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0)))
    if rng.random() < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(40, 91)))
        image = Image.open(file)
    pixels = np.asarray(image, float)
    if rng.random() < 0.5:
        pixels = pixels * rng.uniform(0.93, 1.07) + rng.uniform(-9, 9) + rng.uniform(-3, 3, 3)
    if rng.random() < 0.4:
        pixels = pixels + rng.normal(0, rng.uniform(1, 8), pixels.shape)
    return np.clip(pixels, 0, 255).round().astype(np.uint8)


def make_lesson(scenes: list[Scene], sprites: Sprites, config: JudgeConfig, spoil_seed: int | None = None) -> Lesson:
    """Scenes rendered, with their truth; spoil_seed spoils the pictures, None leaves them as they are."""
    renders = [render(scene, sprites) for scene in scenes]
    pictures = [r.picture for r in renders]
    if spoil_seed is not None:
        draws = [np.random.default_rng((spoil_seed, scene.seed)) for scene in scenes]
        pictures = [corrupt_picture(picture, draw) for picture, draw in zip(pictures, draws, strict=True)]
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.zeros(len(scenes), *renders[0].picture.shape[:2], dtype=torch.long)
    present = torch.zeros(len(scenes), len(config.objects))
    paint = torch.full(present.shape, IGNORE_LABEL)
    strength = torch.zeros(len(scenes), len(config.attributes))
    for i, (scene, r) in enumerate(zip(scenes, renders, strict=True)):
        for thing in scene.things:
            word = config.objects.index(thing.name)
            labels[i][torch.from_numpy(r.masks[thing.name])] = 1 + word
            present[i, word] = 1
            if thing.colour and scene.style != "sketch":
                paint[i, word] = config.colours.index(thing.colour)
        if scene.attribute:
            strength[i, config.attributes.index(scene.attribute)] = scene.strength
    background = torch.tensor([config.backgrounds.index(s.background) for s in scenes])
    style = torch.tensor([config.styles.index(s.style) for s in scenes])
    return Lesson(stacked.contiguous(), labels, present, paint, background, style, strength)


def judge_loss(network: Network, lesson: Lesson) -> Tensor:
    """The training loss: cross-entropies of things, kinds, objects, colours, place and style, and squared errors of
    strength. Kinds are told where there is a thing, and colours are read under the true masks, so that each can be
    learnt before the others are; the weights bring the terms to a like size at the start."""
    with half_precision():
        read = network(lesson.pictures.contiguous(memory_format=torch.channels_last))
    read = Reading(*(part.float() for part in read))
    cells = lesson.labels[:, 2::4, 2::4]  # b H/4 W/4
    covers = F.one_hot(cells, 1 + read.kinds.shape[1])[..., 1:].movedim(3, 1).float()
    colours, shown = network.colours(read.features, covers), lesson.paint != IGNORE_LABEL
    colour = F.cross_entropy(colours[shown], lesson.paint[shown]) if shown.any() else colours.sum() * 0
    return (
        5 * F.binary_cross_entropy_with_logits(read.thing, (lesson.labels > 0).float())
        + 2 * F.cross_entropy(read.kinds, cells - 1, ignore_index=-1)
        + 10 * F.binary_cross_entropy_with_logits(read.objects, lesson.present)
        + colour
        + F.cross_entropy(read.background, lesson.background)
        + F.cross_entropy(read.style, lesson.style)
        + 60 * F.mse_loss(read.strength, lesson.strength)
    )


def ranks(values: Tensor) -> Tensor:
    """The rank of each value (n,), equal ones sharing their mean rank."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2)[place]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's coefficient of two series (n,)."""
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()


def answers(verdict: Verdict, lesson: Lesson) -> dict[str, list[float]]:
    """What an examination counts, scene by scene or thing by thing: 1 or 0 for right or wrong, IoU in [0, 1].

    object: whether the k likeliest objects are the k that are there (k is known, as it is from a caption). colour: for
    each thing of a scene that is no sketch, read under the judge's own mask. iou: for each object, the pixels where
    its probability is above 0.5 against its true mask.
    """
    found: dict[str, list[float]] = {"object": [], "objects_2": [], "colour": [], "iou": []}
    for i, present in enumerate(lesson.present > 0):
        count = int(present.sum())
        right = bool(present[verdict.objects[i].topk(count).indices].all())
        found["object"].append(float(right))
        if count == 2:
            found["objects_2"].append(float(right))
        for word in present.nonzero()[:, 0].tolist():
            seen, true = verdict.masks(verdict.config.objects[word])[i] > 0.5, lesson.labels[i] == 1 + word
            found["iou"].append(((seen & true).sum() / (seen | true).sum()).item())
            if lesson.paint[i, word] != IGNORE_LABEL:
                found["colour"].append(float(verdict.paints[i, word].argmax() == lesson.paint[i, word]))
    found["background"] = (verdict.background.argmax(1) == lesson.background).float().tolist()
    found["style"] = (verdict.style.argmax(1) == lesson.style).float().tolist()
    return found


Table = dict[str, tuple[float, int]]  # name -> (mean, how many)


def examine(
    judge: Judge,
    sprites: Sprites,
    *,
    count: int = EXAM_SCENES,
    spoil_seed: int | None = None,
    through: Callable[[Tensor], Tensor] = lambda pictures: pictures,
) -> Table:
    """The table on `count` held-out renders, as they are, spoiled, or `through` an autoencoder. Strengths are rank
    correlations among the scenes that bear the attribute; `absent_<attribute>` is the mean strength seen where it is
    not."""
    scenes = list(dataset(EXAM_SEED, count, held_out=True))
    found: dict[str, list[float]] = {}
    seen, true = [], []
    for start in range(0, count, 40):
        sheet = make_lesson(scenes[start : start + 40], sprites, judge.config, spoil_seed)
        verdict = judge(through(sheet.pictures))
        for name, values in answers(verdict, sheet).items():
            found.setdefault(name, []).extend(values)
        seen.append(verdict.strength)
        true.append(sheet.strength)
    table = {name: (sum(values) / len(values), len(values)) for name, values in found.items()}
    for i, name in enumerate(judge.config.attributes):
        s, t = torch.cat(seen)[:, i], torch.cat(true)[:, i]
        here = t > 0
        table[f"strength_{name}"] = (rank_correlation(s[here], t[here]), int(here.sum()))
        table[f"absent_{name}"] = (s[~here].mean().item(), int((~here).sum()))
    return table


def figures(table: Table, attributes: Sequence[str]) -> dict[str, float]:
    """Of an examination, what is asked of the judge; the least of the strengths is its strength."""
    row = {f"judge_{name}": table[name][0] for name in ("object", "colour", "background", "style", "iou")}
    strengths = {f"judge_{name}": table[f"strength_{name}"][0] for name in attributes}
    return row | strengths | {"judge_strength": min(strengths.values())}


def report(judge: Judge, sprites: Sprites) -> None:
    """Prints the table, for renders as they are and spoiled, and last one JSON line of the former."""
    clean, worse = examine(judge, sprites), examine(judge, sprites, spoil_seed=EXAM_SEED)
    print("| on held-out renders | as they are | spoiled | of |\n|---|---|---|---|")
    for name, (value, count) in clean.items():
        print(f"| {name} | {value:.4f} | {worse[name][0]:.4f} | {count} |")
    row = figures(clean, judge.config.attributes)
    print(json.dumps({name: round(value, 4) for name, value in row.items()}))


def train(work: Path, seed: int, sprites: Sprites, stop_at: float) -> tuple[Judge, bool]:
    """The judge with its averaged weights, and whether its training is complete. Resumes what `work` holds."""
    torch.manual_seed(seed)
    config = JudgeConfig()
    network = Network(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(network, work, rate=lambda step: LR * cooldown(step, STEPS), steps=STEPS, ema=0.998, seed=seed)

    def loss(step: int) -> Tensor:
        scenes = list(dataset(seed, BATCH, start=step * BATCH))
        return judge_loss(network, make_lesson(scenes, sprites, config, spoil_seed=seed))

    training.run(loss, stop_at=stop_at)
    training.averaged()
    return Judge(network, config), training.step >= STEPS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minip2p.tiny.judge_train", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints and sprites (default .train)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the weights are written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, to be resumed later")
    parser.add_argument("--exam", action="store_true", help="train nothing: examine the weights that are there")
    options = parser.parse_args()

    def work() -> None:
        sprites = Sprites.load(fetch_sprites(options.work / "sprites"))
        if not options.exam:
            judge, done = train(options.work / "judge", options.seed, sprites, time.time() + 60 * options.minutes)
            if not done:
                return print("not done: the same command goes on from here")
            judge.save(options.out)
        return report(Judge.load(options.out), sprites)

    return run_guarded(work)


if __name__ == "__main__":
    sys.exit(main())
