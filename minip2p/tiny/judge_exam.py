"""Examines the judge on held-out renders: combinations of object, colour and background that it was not trained on.

Axes: b batch, H W height and width of a picture.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from minip2p.tiny.judge import Judge, Verdict
from minip2p.tiny.judge_data import IGNORE_LABEL, LabelledBatch, labelled_batch, reconstruct
from minip2p.tiny.scenes import dataset
from minip2p.tiny.sprites import Sprites
from minip2p.vae import VAE

EXAM_SEED, EXAM_SCENES = 7001, 1200  # fixed before the first training

ExamTable = dict[str, tuple[float, int]]  # name -> (mean, number of values)


def ranks(values: Tensor) -> Tensor:
    """The rank of each value (n,), from 1. Equal values share their mean rank."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2)[place]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two series (n,)."""
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()


def score_verdict(verdict: Verdict, batch: LabelledBatch) -> dict[str, list[float]]:
    """The scores of a verdict: 1 or 0 for right or wrong, or an IoU, for each scene or each object.

    object: whether the k likeliest objects are the k objects of the scene (k is known, as it is from a caption).
    object_strict: whether the objects that are likelier present than absent are those of the scene.
    objects_2: the same, only for scenes of two. colour: for each object of a scene that is not a sketch, read under the
    judge's own mask. iou: for each object, its predicted mask (probability above 0.5) against the true one.
    background, style: for each scene.
    """
    scores: dict[str, list[float]] = {"object": [], "object_strict": [], "objects_2": [], "colour": [], "iou": []}
    for i, present in enumerate(batch.present > 0):
        count = int(present.sum())
        right = bool(present[verdict.objects[i].topk(count).indices].all())
        scores["object"].append(float(right))
        scores["object_strict"].append(float(torch.equal(verdict.objects[i] > 0.5, present)))
        if count == 2:
            scores["objects_2"].append(float(right))
        for word in present.nonzero()[:, 0].tolist():
            predicted = verdict.masks(verdict.config.objects[word])[i] > 0.5
            true = batch.labels[i] == 1 + word
            scores["iou"].append(((predicted & true).sum() / (predicted | true).sum()).item())
            if batch.colours[i, word] != IGNORE_LABEL:
                scores["colour"].append(float(verdict.colours[i, word].argmax() == batch.colours[i, word]))
    scores["background"] = (verdict.background.argmax(1) == batch.background).float().tolist()
    scores["style"] = (verdict.style.argmax(1) == batch.style).float().tolist()
    return scores


def examine(
    judge: Judge,
    sprites: Sprites,
    *,
    count: int = EXAM_SCENES,
    corrupt_seed: int | None = None,
    transform: Callable[[Tensor], Tensor] = lambda pictures: pictures,
) -> ExamTable:
    """The judge's scores on `count` held-out renders.

    corrupt_seed: see `labelled_batch`. transform: applied to the pictures b 3 H W first; for instance, an autoencoder.
    The table has the means of `score_verdict`; strength_<attribute>, the rank correlation of predicted and true
    strength among the scenes with the attribute; and absent_<attribute>, the mean predicted strength in the others.
    """
    scenes = list(dataset(EXAM_SEED, count, held_out=True))
    scores: dict[str, list[float]] = {}
    predicted_strengths, true_strengths = [], []
    for start in range(0, count, 40):
        batch = labelled_batch(scenes[start : start + 40], sprites, judge.config, corrupt_seed)
        verdict = judge(transform(batch.pictures))
        for name, values in score_verdict(verdict, batch).items():
            scores.setdefault(name, []).extend(values)
        predicted_strengths.append(verdict.strength)
        true_strengths.append(batch.strength)
    table = {name: (sum(values) / len(values), len(values)) for name, values in scores.items()}
    for i, name in enumerate(judge.config.attributes):
        predicted, true = torch.cat(predicted_strengths)[:, i], torch.cat(true_strengths)[:, i]
        shown = true > 0
        table[f"strength_{name}"] = (rank_correlation(predicted[shown], true[shown]), int(shown.sum()))
        table[f"absent_{name}"] = (predicted[~shown].mean().item(), int((~shown).sum()))
    return table


def judge_metrics(table: ExamTable, attributes: Sequence[str]) -> dict[str, float]:
    """The metrics of an examination that the model card reports. judge_strength is the least of the strengths."""
    names = "object", "object_strict", "colour", "background", "style", "iou"
    row = {f"judge_{name}": table[name][0] for name in names}
    strengths = {f"judge_{name}": table[f"strength_{name}"][0] for name in attributes}
    return row | strengths | {"judge_strength": min(strengths.values())}


def print_exam(judge: Judge, sprites: Sprites, vae: VAE) -> None:
    """Prints the table for held-out renders as they are, corrupted, and encoded and decoded by a VAE; and last one JSON
    line with the metrics of the first and of the last (`…_decoded`)."""
    clean, corrupted = examine(judge, sprites), examine(judge, sprites, corrupt_seed=EXAM_SEED)
    decoded = examine(judge, sprites, transform=partial(reconstruct, vae))
    print("| on held-out renders | as they are | corrupted | decoded | number |\n|---|---|---|---|---|")
    for name, (value, count) in clean.items():
        print(f"| {name} | {value:.4f} | {corrupted[name][0]:.4f} | {decoded[name][0]:.4f} | {count} |")
    metrics = judge_metrics(clean, judge.config.attributes)
    of_decoded = judge_metrics(decoded, judge.config.attributes)
    metrics |= {f"{name}_decoded": value for name, value in of_decoded.items()}
    print(json.dumps({name: round(value, 4) for name, value in metrics.items()}))
