"""How well objects are moved: the parts of our method and other methods, on cases whose true results are known.

The source of a case is a photograph to the model: it is inverted once (direct inversion), and each method edits it. The
results are in files, see `minip2p.evaluation.result_files`.

Axes: 3 H W pictures, H W masks, 1 c h w latents.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from minip2p.baselines import feature_guided_move, self_guided_move
from minip2p.checkpoints.components import RowCounter
from minip2p.evaluation.move_cases import MoveCase
from minip2p.evaluation.result_files import ResultFiles, Row
from minip2p.evaluation.workers import CaseResult, WorkerPool
from minip2p.io.images import to_pil
from minip2p.metrics.image import psnr
from minip2p.p2p.editing import record_for_moves, run_edits
from minip2p.p2p.options import EditOptions
from minip2p.p2p.places import place_objects
from minip2p.p2p.targets import EditTarget, make_targets
from minip2p.p2p.warp import grid_warp, noise_cells
from minip2p.pipeline import Pipeline
from minip2p.sampling.progress import progress_bar
from minip2p.sampling.trajectory import Trajectory
from minip2p.sweeps.ray_pool import RayPool, run_units
from minip2p.sweeps.shards import ALL_UNITS, Shard
from minip2p.tiny.judge import Judge, Verdict

STEPS = 20
SETTINGS: Mapping[str, Any] = MappingProxyType({"cross_replace": 0.8, "self_replace": 0.8})

MAX_DISTANCE = 8.0  # pixels between the centres of the object and of the true one
MAX_VACATED = 0.2  # share of the vacated place that may still be object
MIN_COVERED = 0.6  # share of each of two places that an object which is duplicated covers at least
MAX_CHANGE = 2.01 / 127.5  # of a pixel of the background, from the one true picture to the other: 2 of 255

METRICS = (
    "success",
    "psnr",
    "psnr_background",
    "psnr_hole",
    "psnr_object",
    "named",
    "distance",
    "vacated",
    "size_ratio",
    "covered",
    "rows",
    "seconds",
)
REQUIRED_METRICS = frozenset({"success", "psnr", "rows", "seconds"})

Edit = Callable[[Pipeline, Trajectory, MoveCase], Tensor]  # (pipe, the source's run, case) -> the picture 3 H W


# --- methods


@dataclass(frozen=True)
class MoveMethod:
    """Our method, or parts of it.

    attention, noise, blend, latents: whether attention is moved, the noise is moved, the rest is kept, and the latents
    of the object are shared with the source. true_mask: the object's place is known. options: of `Pipeline.edit`.
    """

    attention: bool = True
    noise: bool = True
    blend: bool = True
    latents: bool = True
    true_mask: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, pipe: Pipeline, run: Trajectory, case: MoveCase) -> Tensor:
        """The edited picture, 3 H W."""
        reading, target = plan_move(pipe, run, case, case.places[0] if self.true_mask else None, self.options)
        warp = target.warp
        assert warp is not None
        if not self.noise:
            warp = replace(warp, noise_cells=torch.arange(len(warp.noise_cells)))
        if not self.latents:
            warp = replace(warp, until=torch.zeros_like(warp.until))
        warp = replace(warp, keeps_rest=self.blend)
        plan = target.plan if self.attention else replace(target.plan, movement=None)
        (out,) = run_edits(pipe.components, reading, [replace(target, warp=warp, plan=plan)])
        return out.picture


def plan_move(
    pipe: Pipeline, run: Trajectory, case: MoveCase, mask: Tensor | None = None, options: Mapping[str, Any] = {}
) -> tuple[Trajectory, EditTarget]:
    """What `Pipeline.edit` plans for a case: the run that the edit reads, and its target. mask: of the object."""
    edit = EditOptions(**{**SETTINGS, **case.edit_options(mask), **options})
    reading = record_for_moves(pipe.components, run, edit)
    assert isinstance(reading, Trajectory)
    (target,) = make_targets(pipe.components, reading, [run.prompt], edit)
    return reading, target


def paste_latents(pipe: Pipeline, run: Trajectory, case: MoveCase) -> Tensor:
    """The encoded picture, of which the object's latents are cut out and pasted, and what they cover fills the hole."""
    edit = EditOptions(**SETTINGS, **case.edit_options())
    reading = record_for_moves(pipe.components, run, edit)
    grid = grid_warp(place_objects(pipe.components, reading, edit), run.latent_size, grow=True)
    x = run.latents[-1:].flatten(-2)
    pasted, covered = grid.T.rows(x.mT).mT, x[..., noise_cells(grid, run.latent_size)]
    latents = torch.where(grid.hole, covered, pasted).unflatten(-1, run.latent_size)
    return pipe.components.decode(latents.to(pipe.device))[0].cpu()


def paste_pixels(pipe: Pipeline, run: Trajectory, case: MoveCase) -> Tensor:
    """The object's pixels cut out and pasted, as our method does it, and the nearest pixels of the rest in the hole.

    Around the places the picture is the source's. What our method has beyond this is sampled.
    """
    _, target = plan_move(pipe, run, case)
    warp = target.warp
    assert warp is not None
    latents = torch.where(warp.area.to(pipe.device), warp.moved_x0, warp.x0)
    return pipe.components.decode(latents)[0].cpu()


def reconstruct_truth(pipe: Pipeline, case: MoveCase) -> Tensor:
    """The true result after the VAE: no edit of latents can be better."""
    return pipe.components.decode(pipe.components.encode(case.pictures[1][None]))[0].cpu()


def regenerate(pipe: Pipeline, run: Trajectory, case: MoveCase) -> Tensor:
    """The source's noise, sampled with the prompt that describes the true result."""
    return pipe.edit(run, case.prompt_after, cross_replace=0.0, self_replace=0.0).picture


def guide_by_attention(pipe: Pipeline, run: Trajectory, case: MoveCase) -> Tensor:
    """Self-guidance, see `minip2p.baselines.self_guidance`."""
    assert case.by is not None and case.scale is not None
    others = [name for name in case.objects if name != case.word]
    return self_guided_move(pipe, run, case.word, by=case.by, scale=case.scale, others=others).picture


def guide_by_features(pipe: Pipeline, run: Trajectory, case: MoveCase) -> Tensor:
    """Feature guidance, see `minip2p.baselines.feature_guidance`. The object's place is its word's."""
    assert case.by is not None and case.scale is not None
    mask = replace(run, components=pipe.components).mask(case.word)  # whose rows are counted
    return feature_guided_move(pipe, run, case.word, mask, by=case.by, scale=case.scale).picture


@dataclass(frozen=True)
class Method:
    """How cases are edited. without: the kinds of cases that it cannot edit."""

    edit: Edit
    without: tuple[str, ...] = ()


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "vae": Method(lambda pipe, run, case: reconstruct_truth(pipe, case)),
        "paste": Method(paste_latents, ("remove",)),
        "paste-pixels": Method(paste_pixels),
        "noise": Method(
            MoveMethod(attention=False, blend=False, latents=False, options={"cross_replace": 0.0, "self_replace": 0.0})
        ),
        "cross": Method(MoveMethod(noise=False, blend=False, latents=False, options={"self_replace": 0.0})),
        "cross+self": Method(MoveMethod(noise=False, blend=False, latents=False)),
        "cross+self+noise": Method(MoveMethod(blend=False, latents=False)),
        "cross+self+noise+blend": Method(MoveMethod(latents=False)),
        "move": Method(MoveMethod()),
        "true-mask": Method(MoveMethod(true_mask=True)),
        "self-guidance": Method(guide_by_attention, ("duplicate", "remove")),
        "feature-guidance": Method(guide_by_features, ("duplicate", "remove")),
        "regenerate": Method(
            regenerate, ("horizontal", "diagonal", "depth", "enlarge", "shrink", "duplicate")
        ),  # the prompt of these does not say what has changed
    }
)


# --- figures


def measure_move(case: MoveCase, after: Tensor, verdict: Verdict) -> dict[str, float]:
    """The figures of an edit against the true result. after: 3 H W. verdict: the judge's, of this picture alone.

    psnr, in dB: of the whole; …_background: of what is equal before and after; …_hole: of the place that the object
    leaves; …_object: of its new place. named: whether the objects that the judge finds likeliest are the right ones.
    distance: in pixels, of the centre of the object from the true one. vacated: which share of the place that it leaves
    is still object. size_ratio: the root of its area, against the true one. covered: of the two places of an object
    that is duplicated, the share of the one that is covered less.
    success: the objects are named, and an object
    - that is moved has its centre within `MAX_DISTANCE` and less than `MAX_VACATED` of its old place;
    - that is resized, in depth as well, has a size nearer to the true one than to the one before, and that centre;
    - that is duplicated covers `MIN_COVERED` of both places, and is not larger than both by a tenth;
    - that is removed is not detected.
    """
    before, truth = case.pictures
    old, new = case.places
    is_equal = ((before - truth).abs() <= MAX_CHANGE).all(0)
    hole = torch.zeros_like(old) if case.kind == "duplicate" else old & ~new
    names = [name for name in case.objects if name != case.word or case.kind != "remove"]
    mask = verdict.masks(case.word)[0] > 0.5
    places = old | new if case.kind == "duplicate" else new
    figures = {
        "psnr": psnr(after, truth),
        "psnr_background": psnr(after, truth, is_equal),
        "psnr_hole": psnr(after, truth, hole),
        "psnr_object": psnr(after, truth, new),
        "named": float(verdict.likeliest_objects(len(names))[0] == set(names)),
        "distance": distance(mask, places),
        "vacated": share(mask, hole),
        "size_ratio": math.sqrt(float(mask.sum() / places.sum())) if places.any() else math.nan,
        "covered": min(share(mask, old), share(mask, new)) if case.kind == "duplicate" else math.nan,
    }
    return {"success": float(bool(figures["named"]) and is_done_right(case, figures, verdict)), **figures}


def is_done_right(case: MoveCase, figures: Mapping[str, float], verdict: Verdict) -> bool:
    """Whether the object is where it should be, see `measure_move`."""
    if case.kind == "remove":
        return case.word not in verdict.detected_objects()[0]
    if case.kind == "duplicate":
        return figures["covered"] >= MIN_COVERED and figures["size_ratio"] <= 1.1
    assert case.scale is not None
    is_near = figures["distance"] <= MAX_DISTANCE
    size_error = abs(math.log(max(figures["size_ratio"], 1e-6)))
    is_resized = case.kind in ("horizontal", "diagonal") or size_error < abs(math.log(case.scale)) / 2
    is_vacated = case.kind in ("enlarge", "shrink") or figures["vacated"] < MAX_VACATED
    return is_near and is_resized and is_vacated


def distance(a: Tensor, b: Tensor) -> float:
    """The distance of the centres of two masks H W, in pixels; NaN if one is empty."""
    centres = [mask.nonzero().double().mean(0) for mask in (a, b)]
    return float((centres[0] - centres[1]).norm())


def share(mask: Tensor, place: Tensor) -> float:
    """Which share of a place a mask covers; 0 of no place."""
    return float((mask & place).sum() / place.sum().clamp(min=1))


# --- runs


def result_files(folder: Path) -> ResultFiles:
    """The files of this benchmark in a folder."""
    return ResultFiles(folder, METRICS, REQUIRED_METRICS)


def jobs_of(cases: Sequence[MoveCase], methods: Sequence[str]) -> list[tuple[MoveCase, list[str]]]:
    """The cases, each with those of the methods that can edit it."""
    return [(case, [name for name in methods if case.kind not in METHODS[name].without]) for case in cases]


def run_case(
    pipe: Pipeline, judge: Judge, case: MoveCase, methods: Sequence[str], folder: Path, steps: int = STEPS
) -> None:
    """Inverts a case, edits it by the methods, and writes the figures and pictures. The inversion is not counted."""
    run = pipe.invert(to_pil(case.pictures[0]), case.prompt, method="direct", steps=steps)
    for name in methods:
        counter, began = RowCounter(), time.perf_counter()
        after = METHODS[name].edit(pipe.counting(counter), run, case)
        cost = {"rows": float(counter.rows), "seconds": time.perf_counter() - began}
        figures = measure_move(case, after, judge(after[None])) | cost
        result_files(folder).write(case, name, figures, after, case.description)


def write_case(pipe: Pipeline, judge: Judge, unit: tuple[MoveCase, list[str]], folder: Path, steps: int) -> None:
    """`run_case` as a `WriteUnit` of a pool of Ray."""
    run_case(pipe, judge, *unit, folder, steps)


def run_case_in_worker(
    pipe: Pipeline, judge: Judge, number: int, job: tuple[MoveCase, list[str], Path], steps: int
) -> CaseResult:
    """`run_case` as a `Measure` of a worker pool. The results are in files, so it returns none."""
    case, methods, folder = job
    run_case(pipe, judge, case, methods, folder, steps)
    return {}, []


def run_benchmark(
    pipe: Pipeline,
    cases: Sequence[MoveCase],
    methods: Sequence[str],
    folder: Path,
    *,
    steps: int = STEPS,
    shard: Shard = ALL_UNITS,
    join: Sequence[Path] | None = None,
    make_pool: Callable[[], WorkerPool] | None = None,
    make_ray_pool: Callable[[], RayPool] | None = None,
) -> list[Row]:
    """Runs the unfinished cases and returns the rows that are finished, one for each method and case that it can edit.

    shard: runs only these of the cases; each process that works in a folder has another. join: runs nothing and copies
    what is finished in these folders; then all must be. make_pool: makes the pool of processes that share the cases.
    make_ray_pool: makes the pool of workers of a Ray cluster, which have the same model and the judge.
    Raises ValueError for a folder that holds another benchmark, and for a damaged row, before anything runs.
    """
    files = result_files(folder)
    settings = {"model": pipe.components.fingerprint, "steps": steps, "cases": [case.description for case in cases]}
    if join is None:
        files.claim(settings)
    else:
        files.join(join, settings, [(case, name) for case, names in jobs_of(cases, methods) for name in names])
    files.read(cases, methods)
    jobs = [
        (case, left, folder)
        for case, names in shard.of(jobs_of(cases, methods))
        if (left := [name for name in names if not files.is_done(case, name)])
    ]
    if make_ray_pool is not None and jobs:
        units, write_unit = [(case, names) for case, names, _ in jobs], partial(write_case, steps=steps)
        run_units(make_ray_pool, write_unit, units, folder, name=lambda unit: unit[0].name)
    elif make_pool is not None and jobs:
        with make_pool() as pool:
            pool.run_all(run_case_in_worker, jobs)
    elif jobs:
        judge = Judge.load()
        for case, names, _ in progress_bar(jobs):
            run_case(pipe, judge, case, names, folder, steps)
    return files.read(cases, methods)
