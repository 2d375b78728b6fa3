"""How well photographs are edited: inversions and masks beside each other on the cases of `minip2p.evaluation.pie_bench`.

A method is an inversion and how the edit is made on it. Each case of each method is a file of its own, with its picture
beside it, so that what was killed goes on and what was done is not done again.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from minip2p.attention.contract import Attend, explicit
from minip2p.baselines import MasaCtrl, PlugAndPlay
from minip2p.evaluation.pie_bench import Case
from minip2p.evaluation.workers import CaseResult, WorkerPool
from minip2p.io import png
from minip2p.io.files import claim_results_folder, write_text
from minip2p.io.images import fit_image, read_image, to_pil
from minip2p.metrics.clip_score import ClipScore
from minip2p.metrics.image import pie_bench_masked_metrics, preservation, psnr, structure
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.separate import SeparateWords
from minip2p.pipeline import Pipeline
from minip2p.sampling.progress import progress_bar
from minip2p.sampling.trajectory import Trajectory
from minip2p.text.prompt import Prompt
from minip2p.tiny.judge import Judge
from minip2p.validation import is_finite

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """An inversion, and how the edit is made on it. masked: blended with the source by the case's words; "truth": by
    its true mask, which no edit knows: what a perfect mask would give. polish: as `Model.invert` takes it. attend: of
    the source's run and the case, the target's attention; edit: options of `Model.edit` besides."""

    inversion: str
    masked: bool | Literal["truth"] = False
    vae_refine_steps: int = 0
    attend: Callable[[Trajectory, Case], Attend | None] = lambda run, case: None
    edit: Mapping[str, Any] = field(default_factory=dict)


def separate_objects(run: Trajectory, case: Case) -> Attend | None:
    """The objects that the target shall show compete for each pixel, where there are several."""
    names = [] if case.expected is None else case.expected["objects"]
    return explicit(SeparateWords(run.components.text.prompt(case.target), names)) if len(names) > 1 else None


WITHOUT_P2P: Mapping[str, Any] = MappingProxyType(
    {"cross": 0.0, "self_": 0.0, "blend": None, "reweight": None}
)  # without Prompt-to-Prompt


METHODS: Mapping[str, Method | None] = MappingProxyType(
    {
        "vae": None,  # no edit at all: how far the VAE alone is from the photograph
        "ddim": Method("ddim"),
        "negative-prompt": Method("negative-prompt"),
        "proximal": Method("proximal"),
        "null-text": Method("null-text"),
        "direct": Method("direct"),
        "edit-friendly": Method("edit-friendly"),
        "direct+mask": Method("direct", masked=True),
        "direct+mask+polish": Method("direct", masked=True, vae_refine_steps=20),
        "direct+true-mask+polish": Method("direct", masked="truth", vae_refine_steps=20),
        "direct+separate": Method("direct", attend=separate_objects),
        "direct+masactrl": Method("direct", attend=lambda run, case: MasaCtrl(run), edit=WITHOUT_P2P),
        "direct+plug-and-play": Method("direct", attend=lambda run, case: PlugAndPlay(run), edit=WITHOUT_P2P),
    }
)


TINY_SETTINGS: Mapping[str, Any] = MappingProxyType({"cross": 0.8, "self_": 0.8})  # as the card of the model recommends


PIE_BENCH_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {"cross": 0.4, "self_": 0.6, "kind": "refine"}
)  # for PIE-Bench


METRICS = (
    "psnr",
    "ssim",
    "mse",
    "psnr_kept",
    "psnr_filled",
    "ssim_filled",
    "mse_filled",
    "structure",
    "success",
    "clip",
    "clip_inside",
    "rows",
    "seconds",
)


REQUIRED_METRICS = frozenset({"psnr", "rows", "seconds"})  # those that every row has


def edit_options(model: Pipeline, case: Case, method: Method) -> dict[str, Any]:
    """How `Model.edit` is asked. Of PIE-Bench's cases as published: cross .4, self .6, refined, blended, and the word
    that is new twice as strong; but for a word that its prompt does not have, which is neither."""
    words: Any = {name: tuple(given) for name, given in case.blend.items()}
    if case.expected is None:
        prompts = {"source": case.source, "target": case.target}
        words = {
            name: tuple(filter(partial(has_word, model.text.prompt(prompts[name])), given))
            for name, given in words.items()
        }
        words = words if any(words.values()) else {}
        strong = {"reweight": dict.fromkeys(words["target"], 2.0)} if words else {}
        return {**PIE_BENCH_SETTINGS, **strong, "blend": LocalBlend(**words) if words else None, **method.edit}
    blend = None
    if method.masked == "truth" and words:  # of a style, all may change
        blend = LocalBlend(mask=case.area(case.mask_runs, training_size(model)))
    elif method.masked and words:
        blend = LocalBlend(**words, pool=False, threshold="otsu", without_threshold="otsu")
    return {**TINY_SETTINGS, "blend": blend, **method.edit}


def training_size(model: Pipeline) -> tuple[int, int]:
    """Rows and columns of the pictures that a model was trained on."""
    side = model.unet.config.sample_size or 64
    rows, columns = side if isinstance(side, tuple) else (side, side)
    return rows * model.vae.stride, columns * model.vae.stride


def has_word(prompt: Prompt, word: str) -> bool:
    """Whether the prompt has the word."""
    try:
        return bool(prompt.token_indices(word))
    except ValueError:
        return False


def edit_case(model: Pipeline, case: Case, method: Method | None, picture: Tensor, steps: int) -> Tensor:
    """The case's picture, 3 H W in [-1, 1], as a method edits it."""
    if method is None:
        return model.decode(model.encode(picture[None]))[0].cpu()
    run: Trajectory = model.invert(
        picture, case.source, method=method.inversion, steps=steps, polish=method.vae_refine_steps
    )
    return model.edit(run, case.target, attend=method.attend(run, case), **edit_options(model, case, method)).picture


def measure_edit(
    case: Case, before: Tensor, after: Tensor, judge: Judge | None, clip: ClipScore | None
) -> dict[str, float]:
    """What is measured of an edit: outside of the true mask, how much of the source is kept (psnr, ssim, mse; with the
    mask black as published, …_filled); psnr_kept: of things that must not change; of the whole: structure, success."""
    size = (before.shape[1], before.shape[2])
    mask = case.mask(size)
    outside = preservation(before, after, mask)
    found = {name: outside[f"{name}_outside"] for name in ("psnr", "ssim", "mse")} | pie_bench_masked_metrics(
        before, after, mask
    )
    found["psnr_kept"] = psnr(before, after, case.area(case.kept_runs, size))
    if judge is not None and case.expected is not None:
        found["success"] = float(judge.finds(after, case.expected))
        found["structure"] = structure(judge.features(before), judge.features(after))
    if clip is not None:
        found["clip"], found["clip_inside"] = (
            clip(after, case.target),
            clip(torch.where(mask, after, -1.0), case.target),
        )
        found.setdefault("structure", structure(clip.features(before), clip.features(after)))
    return found


def run_case(
    model: Pipeline, case: Case, name: str, folder: Path, steps: int, judge: Judge | None, clip: ClipScore | None = None
) -> None:
    """Runs one case by one method and writes what it gave: its figures, and its picture."""
    before = fit_image(read_image(case.picture), training_size(model), "stretch")
    begun, since = model.rows, time.perf_counter()
    after = edit_case(model, case, METHODS[name], before, steps)
    cost = {"rows": float(model.rows - begun), "seconds": time.perf_counter() - since}
    row = {
        "case": case.name,
        "kind": case.kind,
        "method": name,
        **measure_edit(case, before, after, judge, clip),
        **cost,
    }
    png.write_pngs([(picture_file(folder, case, name), to_pil(after), f"{case.source} -> {case.target}")])
    kept = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    write_text(row_file(folder, case, name), json.dumps(kept) + "\n")


def row_file(folder: Path, case: Case, method: str) -> Path:
    return folder / "rows" / method / f"{case.name}.json"


def picture_file(folder: Path, case: Case, method: str) -> Path:
    return folder / "pictures" / method / f"{case.name}.png"


def is_done(folder: Path, case: Case, method: str) -> bool:
    return row_file(folder, case, method).exists() and picture_file(folder, case, method).exists()


def run_benchmark(
    model: Pipeline,
    cases: Sequence[Case],
    methods: Sequence[str],
    folder: Path,
    *,
    steps: int = 50,
    judge: Judge | None = None,
    clip: ClipScore | None = None,
    crew: Callable[[], WorkerPool] | None = None,
) -> list[Row]:
    """Runs what is not there yet and returns all that is, a row for each case and method. crew: processes to share the
    cases out to, which have the judge and no CLIP. Raises ValueError for a folder that holds another benchmark."""
    what = {
        "model": model.fingerprint,
        "steps": steps,
        "judge": judge is not None,
        "clip": clip and clip.name,
        "cases": [case.description for case in cases],
    }
    if model.extra_channels:
        raise ValueError("this model makes a picture of a picture: photographs are not inverted by it, and not edited")
    for case in cases:  # whatever is wrong with pictures or rows is said before anything is run
        read_image(case.picture)
    claim_results_folder(folder / "bench.json", folder / "rows", what, "the benchmark of other cases or another model")
    read_rows(folder, cases, methods)
    left = [(case, name, folder) for name in methods for case in cases if not is_done(folder, case, name)]
    if crew is not None and left:
        with crew() as several:
            several.run_all(run_case_in_worker, left)
    else:
        for case, name, _ in progress_bar(left):
            run_case(model, case, name, folder, steps, judge, clip)
    return read_rows(folder, cases, methods)


def run_case_in_worker(
    model: Pipeline, judge: Judge, number: int, job: tuple[Case, str, Path], steps: int
) -> CaseResult:
    """`measured`, as a crew asks for it."""
    case, name, folder = job
    run_case(model, case, name, folder, steps, judge)
    return {}, []


def read_rows(folder: Path, cases: Sequence[Case], methods: Sequence[str]) -> list[Row]:
    """The figures of all cases that are there, method by method. ValueError for a file that is not of its case."""
    rows = []
    for name in methods:
        for case in cases:
            if not (file := row_file(folder, case, name)).exists():
                continue
            try:
                row = json.loads(file.read_text(encoding="utf-8"))
                whole = (row["case"], row["kind"], row["method"]) == (case.name, case.kind, name)
                whole &= all(
                    row[key] is None or (is_finite(row[key]) and not isinstance(row[key], bool))
                    for key in METRICS
                    if key in row or key in REQUIRED_METRICS
                )
            except (ValueError, TypeError, KeyError, RecursionError):
                whole = False
            if not whole:
                raise ValueError(f"{file}: not the figures of case {case.name} by {name}: remove it, to make it again")
            rows.append(row)
    return rows
