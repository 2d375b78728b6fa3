"""How well photographs are edited: inversions and masks beside each other on the cases of `minip2p.piebench`.

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

from minip2p import png
from minip2p.attention import Attend, explicit
from minip2p.blend import Blend
from minip2p.clip import Clip
from minip2p.config import is_finite
from minip2p.files import claim, write_text
from minip2p.metrics import filled, preservation, psnr, structure
from minip2p.model import Model, bar
from minip2p.neighbours import MasaCtrl, PlugAndPlay
from minip2p.picture import fitted, read
from minip2p.piebench import Case
from minip2p.separate import Separate
from minip2p.tiny.cases import Crew, Found
from minip2p.tiny.judge import Judge
from minip2p.trajectory import Trajectory, as_image
from minip2p.words import Prompt

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """An inversion, and how the edit is made on it. masked: blended with the source by the case's words; "truth": by
    its true mask, which no edit knows: what a perfect mask would give. polish: as `Model.invert` takes it. attend: of
    the source's run and the case, the target's attention; edit: options of `Model.edit` besides."""

    inversion: str
    masked: bool | Literal["truth"] = False
    polish: int = 0
    attend: Callable[[Trajectory, Case], Attend | None] = lambda run, case: None
    edit: Mapping[str, Any] = field(default_factory=dict)


def separated(run: Trajectory, case: Case) -> Attend | None:
    """The objects that the target shall show compete for each pixel, where there are several."""
    names = [] if case.expected is None else case.expected["objects"]
    return explicit(Separate(run.parts.text.prompt(case.target), names)) if len(names) > 1 else None


ALONE: Mapping[str, Any] = MappingProxyType(
    {"cross": 0.0, "self_": 0.0, "blend": None, "reweight": None}
)  # without Prompt-to-Prompt


METHODS: Mapping[str, Method | None] = MappingProxyType({
    "vae": None,  # no edit at all: how far the VAE alone is from the photograph
    "ddim": Method("ddim"),
    "negative-prompt": Method("negative-prompt"),
    "proximal": Method("proximal"),
    "null-text": Method("null-text"),
    "direct": Method("direct"),
    "edit-friendly": Method("edit-friendly"),
    "direct+mask": Method("direct", masked=True),
    "direct+mask+polish": Method("direct", masked=True, polish=20),
    "direct+true-mask+polish": Method("direct", masked="truth", polish=20),
    "direct+separate": Method("direct", attend=separated),
    "direct+masactrl": Method("direct", attend=lambda run, case: MasaCtrl(run), edit=ALONE),
    "direct+plug-and-play": Method("direct", attend=lambda run, case: PlugAndPlay(run), edit=ALONE),
})  # fmt: skip
SHIPPED: Mapping[str, Any] = MappingProxyType({"cross": 0.8, "self_": 0.8})  # as the card of the model recommends
PUBLISHED: Mapping[str, Any] = MappingProxyType({"cross": 0.4, "self_": 0.6, "kind": "refine"})  # for PIE-Bench
FIGURES = ("psnr", "ssim", "mse", "psnr_kept", "psnr_filled", "ssim_filled", "mse_filled", "structure", "success",
           "clip", "clip_inside", "rows", "seconds")  # fmt: skip

ALWAYS = frozenset({"psnr", "rows", "seconds"})  # those that every row has


def options(model: Model, case: Case, method: Method) -> dict[str, Any]:
    """How `Model.edit` is asked. Of PIE-Bench's cases as published: cross .4, self .6, refined, blended, and the word
    that is new twice as strong; but for a word that its prompt does not have, which is neither."""
    words: Any = {name: tuple(given) for name, given in case.blend.items()}
    if case.expected is None:
        prompts = {"source": case.source, "target": case.target}
        words = {name: tuple(filter(partial(said, model.text.prompt(prompts[name])), given))
                 for name, given in words.items()}  # fmt: skip
        words = words if any(words.values()) else {}
        strong = {"reweight": dict.fromkeys(words["target"], 2.0)} if words else {}
        return {**PUBLISHED, **strong, "blend": Blend(**words) if words else None, **method.edit}
    blend = None
    if method.masked == "truth" and words:  # of a style, all may change
        blend = Blend(mask=case.area(case.runs, pixels(model)))
    elif method.masked and words:
        blend = Blend(**words, pool=False, threshold="otsu", without_threshold="otsu")
    return {**SHIPPED, "blend": blend, **method.edit}


def pixels(model: Model) -> tuple[int, int]:
    """Rows and columns of the pictures that a model was trained on."""
    side = model.unet.config.sample_size or 64
    rows, columns = side if isinstance(side, tuple) else (side, side)
    return rows * model.vae.stride, columns * model.vae.stride


def said(prompt: Prompt, word: str) -> bool:
    """Whether the prompt has the word."""
    try:
        return bool(prompt.find(word))
    except ValueError:
        return False


def edited(model: Model, case: Case, method: Method | None, picture: Tensor, steps: int) -> Tensor:
    """The case's picture, 3 H W in [-1, 1], as a method edits it."""
    if method is None:
        return model.decode(model.encode(picture[None]))[0].cpu()
    run: Trajectory = model.invert(picture, case.source, method=method.inversion, steps=steps, polish=method.polish)
    return model.edit(run, case.target, attend=method.attend(run, case), **options(model, case, method)).picture


def figures(case: Case, before: Tensor, after: Tensor, judge: Judge | None, clip: Clip | None) -> dict[str, float]:
    """What is measured of an edit: outside of the true mask, how much of the source is kept (psnr, ssim, mse; with the
    mask black as published, …_filled); psnr_kept: of things that must not change; of the whole: structure, success."""
    size = (before.shape[1], before.shape[2])
    mask = case.mask(size)
    outside = preservation(before, after, mask)
    found = {name: outside[f"{name}_outside"] for name in ("psnr", "ssim", "mse")} | filled(before, after, mask)
    found["psnr_kept"] = psnr(before, after, case.area(case.kept, size))
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


def measured(
    model: Model, case: Case, name: str, folder: Path, steps: int, judge: Judge | None, clip: Clip | None = None
) -> None:
    """Runs one case by one method and writes what it gave: its figures, and its picture."""
    before = fitted(read(case.picture), pixels(model), "stretch")
    begun, since = model.rows, time.perf_counter()
    after = edited(model, case, METHODS[name], before, steps)
    cost = {"rows": float(model.rows - begun), "seconds": time.perf_counter() - since}
    row = {"case": case.name, "kind": case.kind, "method": name, **figures(case, before, after, judge, clip), **cost}
    png.write([(picture_of(folder, case, name), as_image(after), f"{case.source} -> {case.target}")])
    kept = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    write_text(file_of(folder, case, name), json.dumps(kept) + "\n")


def file_of(folder: Path, case: Case, method: str) -> Path:
    return folder / "rows" / method / f"{case.name}.json"


def picture_of(folder: Path, case: Case, method: str) -> Path:
    return folder / "pictures" / method / f"{case.name}.png"


def done(folder: Path, case: Case, method: str) -> bool:
    return file_of(folder, case, method).exists() and picture_of(folder, case, method).exists()


def run(
    model: Model,
    cases: Sequence[Case],
    methods: Sequence[str],
    folder: Path,
    *,
    steps: int = 50,
    judge: Judge | None = None,
    clip: Clip | None = None,
    crew: Callable[[], Crew] | None = None,
) -> list[Row]:
    """Runs what is not there yet and returns all that is, a row for each case and method. crew: processes to share the
    cases out to, which have the judge and no CLIP. Raises ValueError for a folder that holds another benchmark."""
    what = {"model": model.fingerprint, "steps": steps, "judge": judge is not None, "clip": clip and clip.name,
            "cases": [case.said for case in cases]}  # fmt: skip
    if model.beside:
        raise ValueError("this model makes a picture of a picture: photographs are not inverted by it, and not edited")
    for case in cases:  # whatever is wrong with pictures or rows is said before anything is run
        read(case.picture)
    claim(folder / "bench.json", folder / "rows", what, "the benchmark of other cases or another model")
    read_rows(folder, cases, methods)
    left = [(case, name, folder) for name in methods for case in cases if not done(folder, case, name)]
    if crew is not None and left:
        with crew() as several:
            several.measured(in_crew, left)
    else:
        for case, name, _ in bar(left):
            measured(model, case, name, folder, steps, judge, clip)
    return read_rows(folder, cases, methods)


def in_crew(model: Model, judge: Judge, number: int, job: tuple[Case, str, Path], steps: int) -> Found:
    """`measured`, as a crew asks for it."""
    case, name, folder = job
    measured(model, case, name, folder, steps, judge)
    return {}, []


def read_rows(folder: Path, cases: Sequence[Case], methods: Sequence[str]) -> list[Row]:
    """The figures of all cases that are there, method by method. ValueError for a file that is not of its case."""
    rows = []
    for name in methods:
        for case in cases:
            if not (file := file_of(folder, case, name)).exists():
                continue
            try:
                row = json.loads(file.read_text(encoding="utf-8"))
                whole = (row["case"], row["kind"], row["method"]) == (case.name, case.kind, name)
                whole &= all(row[key] is None or (is_finite(row[key]) and not isinstance(row[key], bool))
                             for key in FIGURES if key in row or key in ALWAYS)  # fmt: skip
            except (ValueError, TypeError, KeyError, RecursionError):
                whole = False
            if not whole:
                raise ValueError(f"{file}: not the figures of case {case.name} by {name}: remove it, to make it again")
            rows.append(row)
    return rows
