"""The candidates of a unit: its source sampled several times, and from each sample every target, by Prompt-to-Prompt.

Axes: h w latents, H W pixels.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention.masks import heatmap_to_mask, mask_to_latent
from minip2p.metrics.clip_score import ClipScore
from minip2p.p2p.editing import run_edits
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import make_targets
from minip2p.pairs.filters import Classifier, background_psnr, clip_scores, model_scores
from minip2p.pairs.prompts import Target, Unit
from minip2p.pairs.settings import SCORES, PairSettings
from minip2p.pipeline import Pipeline
from minip2p.planner.lexicon import DETERMINERS, STOPS
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory
from minip2p.text.prompt import Prompt, WordSelector


@dataclass(frozen=True, eq=False)
class Candidate:
    """A pair before it is filtered.

    sample: its number. mask_kind: of MASKS. mask: where the picture was allowed to change; for "none", where the words
    that differ have attention in either picture; H W bool, or None where no word differs. scores: by name, None for
    those that are not measured.
    """

    target: Target
    sample: int
    source: Trajectory
    edit: Trajectory
    before: Tensor
    after: Tensor
    cross_replace: float
    self_replace: float
    mask_kind: str
    mask: Tensor | None
    scores: Mapping[str, float | None]


def generator_for(*key: object) -> np.random.Generator:
    """Random numbers that depend on a key alone: texts and numbers."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def draw(rng: np.random.Generator, *ranges: tuple[float, float]) -> list[float]:
    """A number from each range, all at the same place in it, to 4 decimals."""
    place = rng.random()
    return [round(low + place * (high - low), 4) for low, high in ranges]


def make_candidates(pipe: Pipeline, unit: Unit, settings: PairSettings, clip: ClipScore | None) -> Iterator[Candidate]:
    """The candidates of a unit, sample by sample, and in a sample target by target.

    The draws depend on the seed, the prompts and the number of the sample alone. Raises ValueError for what the model
    cannot take.
    """
    for number in range(settings.samples):
        rng = generator_for(settings.seed, unit.source, number)
        run_seed, noise_seed = (int(n) for n in rng.integers(2**32, size=2))
        (guidance,) = draw(rng, settings.guidance)
        run = settings.run(run_seed, guidance)
        yield from sample_candidates(pipe, unit, settings, run, number, noise_seed, clip)


def sample_candidates(
    pipe: Pipeline,
    unit: Unit,
    settings: PairSettings,
    run: RunSettings,
    number: int,
    noise_seed: int,
    clip: ClipScore | None,
) -> list[Candidate]:
    """The candidates of one sample. The source runs once for all targets; where masks are made of it, it runs first.

    run: of the sample. noise_seed: of the classifier's noises.
    """
    components, of_kind = pipe.components, [settings.of(target.kind) for target in unit.targets]
    start = pipe.prepare(unit.source, run)
    words = [changed_words(pipe.text.prompt(unit.source), pipe.text.prompt(target.prompt)) for target in unit.targets]
    reads_masks = any(each.masks != ("none",) for each in of_kind)
    origin = sample(components, start) if reads_masks else start
    masks = attention_masks(origin, words, of_kind) if isinstance(origin, Trajectory) else [{}] * len(words)
    plans, edits = [], []
    for target, each, changed, by_kind in zip(unit.targets, of_kind, words, masks, strict=True):
        rng = generator_for(settings.seed, unit.source, number, target.prompt)
        cross, self_ = draw(rng, each.cross_replace, each.self_replace)
        kinds = [kind for kind in each.masks if kind == "none" or kind in by_kind] or ["none"]
        for kind in kinds:
            mask = by_kind.get(kind)
            options = EditOptions(
                cross_replace=cross,
                self_replace=self_,
                self_max_queries=each.self_max_queries,
                local_blend=watching_blend(*changed, each) if mask is None else LocalBlend(mask=mask, start=0.0),
                region=mask,
            )
            edits += make_targets(components, origin, [target.prompt], options)
            plans.append((target, cross, self_, kind, mask))
    runs = run_edits(components, origin, edits)
    assert runs[0].source_run is not None
    source = origin if isinstance(origin, Trajectory) else runs[0].source_run.finish()
    before, pictures = source.picture, [each.picture for each in runs]
    if clip is not None:
        scores = [
            clip_scores(clip, before, after, unit.source, each.prompt)
            for after, each in zip(pictures, runs, strict=True)
        ]
    else:
        classifier = Classifier(
            components,
            source.latents.shape[1:],
            noises=settings.noises,
            guidance_scale=start.guidance_scale,
            seed=noise_seed,
        )
        scores = model_scores(classifier, source, runs)
    candidates = []
    results = zip(plans, runs, edits, pictures, scores, strict=True)
    for (target, cross, self_, kind, mask), edit, state, after, measured in results:
        if mask is None and state.blend_state is not None:
            heat_mask = state.blend_state.mask().cpu()[None, None].float()
            mask = F.interpolate(heat_mask, after.shape[1:], mode="nearest")[0, 0] > 0.5
        values = dict.fromkeys(SCORES) | measured | {"psnr": background_psnr(before, after, mask)}
        candidates.append(Candidate(target, number, source, edit, before, after, cross, self_, kind, mask, values))
    return candidates


def changed_words(source: Prompt, target: Prompt) -> tuple[list[str], list[str]]:
    """The words of the source that go and those of the target that come.

    Articles, prepositions and the like are among them only where there is nothing else.
    """
    old, new = ([word.text for word in prompt.visible_words] for prompt in (source, target))
    sides = [[word for word in old if word not in new], [word for word in new if word not in old]]
    contents = [[word for word in side if word not in DETERMINERS | STOPS] for side in sides]
    removed, added = contents if any(contents) else sides
    return list(dict.fromkeys(removed)), list(dict.fromkeys(added))


def watching_blend(removed: Sequence[str], added: Sequence[str], settings: PairSettings) -> LocalBlend | None:
    """A local blend that never begins, and only follows where the words have attention; None without words."""
    if not removed and not added:
        return None
    return LocalBlend(tuple(removed), tuple(added), threshold=settings.mask_threshold, pool=False, start=1.0)


def attention_masks(
    source: Trajectory, words: Sequence[tuple[Sequence[str], Sequence[str]]], settings: Sequence[PairSettings]
) -> list[dict[str, Tensor]]:
    """For each target the masks before its edit, by kind, H W bool: where the words of the source that go have
    attention in the source's run, which is gone through once more for all of them.

    Those that would let no latent pixel change, or are as one before them, are left out; so are all where no word goes,
    as when something is added.
    """
    names: list[WordSelector] = list(dict.fromkeys(word for removed, _ in words for word in removed))
    if not names:
        return [{} for _ in words]
    heat, masks = source.heatmaps(names).total, []
    for (removed, _), each in zip(words, settings, strict=True):
        tight = torch.zeros(source.picture_size, dtype=torch.bool)
        if removed:
            total = torch.stack([heat[names.index(word)] for word in removed]).sum(0)
            tight = (
                heatmap_to_mask(total, source.picture_size, each.mask_threshold, pool=False, smooth=True).cpu() > 0.5
            )
        by_kind: dict[str, Tensor] = {}
        for kind, mask in (("tight", tight), ("grown", grown(tight, each.grow)), ("box", bounding_box(tight))):
            is_new = kind in each.masks and not any(torch.equal(mask, other) for other in by_kind.values())
            if is_new and mask_to_latent(mask, source.latent_size).any():
                by_kind[kind] = mask
        masks.append(by_kind)
    return masks


def grown(mask: Tensor, share: float) -> Tensor:
    """A mask H W with all pixels within a square of ± share · √area around its own."""
    radius = round(share * float(mask.sum()) ** 0.5)
    return F.max_pool2d(mask[None].float(), 2 * radius + 1, stride=1, padding=radius)[0] > 0


def bounding_box(mask: Tensor) -> Tensor:
    """The smallest rectangle with a mask H W in it; empty for an empty mask."""
    box = torch.zeros_like(mask)
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if len(rows):
        box[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = True
    return box
