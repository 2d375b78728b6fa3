"""How well photographs are edited: methods of inversion and editing, compared on the cases of `pie_bench`.

The results are in files, see `minip2p.evaluation.result_files`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from minip2p.attention.contract import Attend, SiteFilter, explicit
from minip2p.baselines import MasaCtrl, PlugAndPlay
from minip2p.checkpoints.components import RowCounter
from minip2p.evaluation.pie_bench import Case, published_picture
from minip2p.evaluation.result_files import ResultFiles, Row
from minip2p.evaluation.workers import CaseResult, WorkerPool
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.clip_score import ClipScore
from minip2p.metrics.dino import DinoStructure
from minip2p.metrics.image import pie_bench_masked_metrics, preservation, psnr, structure
from minip2p.metrics.lpips import Lpips
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.separate import SeparateWords
from minip2p.pipeline import Pipeline
from minip2p.sampling.progress import progress_bar
from minip2p.sampling.trajectory import Trajectory
from minip2p.sched import DDIMScheduler
from minip2p.sweeps.ray_pool import RayPool, run_units
from minip2p.sweeps.shards import ALL_UNITS, Shard
from minip2p.text.prompt import Prompt
from minip2p.tiny.judge import Judge


@dataclass(frozen=True)
class Method:
    """An inversion, and how the edit is made on it.

    masked: blend the edit with the source by the words of the case; "truth": by its true mask, which no real edit
    knows, so that it shows what a perfect mask would give. vae_refine_steps: as `Pipeline.invert` takes it. invert:
    further options of `Pipeline.invert`. describes_source: False inverts with an empty prompt. attend: (run of the
    source, case) -> the attention of the target. edit: further options of `Pipeline.edit`.
    """

    inversion: str
    masked: bool | Literal["truth"] = False
    vae_refine_steps: int = 0
    invert: Mapping[str, Any] = field(default_factory=dict)
    describes_source: bool = True
    attend: Callable[[Trajectory, Case], Attend | None] = lambda run, case: None
    edit: Mapping[str, Any] = field(default_factory=dict)


def separate_objects(run: Trajectory, case: Case) -> Attend | None:
    """An attention in which the objects of the target compete for each pixel; None where there is only one."""
    names = [] if case.expected is None else case.expected["objects"]
    return explicit(SeparateWords(run.components.text.prompt(case.target), names)) if len(names) > 1 else None


def published_masactrl(run: Trajectory, case: Case) -> Attend:
    """MasaCtrl as the published code has it: on all rows, in all levels of the decoder but the coarsest."""
    strides = sorted({site.stride for site in run.components.unet.sites if site.place == "up"})
    sites = SiteFilter(places=("up",), strides=tuple(strides[:-1] or strides))
    return MasaCtrl(run, sites=sites, unconditional=True)


def published_plug_and_play_attention(run: Trajectory, case: Case) -> Attend:
    """The attention part of plug-and-play as the published code has it: on all rows, in all layers of the decoder but
    the first, with the maps of a source without words."""
    indices = sorted({site.index for site in run.components.unet.sites if site.place == "up"})
    sites = SiteFilter(places=("up",), indices=tuple(indices[1:] or indices))
    return PlugAndPlay(replace(run, prompt="", negative_prompt=""), sites=sites, unconditional=True)


# Options of `Pipeline.edit` that switch Prompt-to-Prompt off.
WITHOUT_P2P: Mapping[str, Any] = MappingProxyType(
    {"cross_replace": 0.0, "self_replace": 0.0, "local_blend": None, "reweight": None}
)

FAST_EDIT: Mapping[str, Any] = MappingProxyType({"cross_replace": 0.5, "self_replace": 0.5})

METHODS: Mapping[str, Method | None] = MappingProxyType(
    {
        "vae": None,  # no edit: how far the VAE alone is from the photograph
        "ddim": Method("ddim"),
        "negative-prompt": Method("negative-prompt"),
        "proximal": Method("proximal"),
        "null-text": Method("null-text"),
        "direct": Method("direct"),
        # Its schedules count from the first step that is edited: of 20 steps, .6 ends where .8 ends for the others.
        "edit-friendly": Method("edit-friendly", edit={"cross_replace": 0.6, "self_replace": 0.6}),
        "virtual": Method("virtual"),
        "virtual+mask": Method("virtual", masked=True),
        # For a model of few steps: of 4 steps, the first two take from the source. Chosen on the last 42 cases.
        "fast": Method("virtual", edit=FAST_EDIT),
        "fast+mask": Method("virtual", masked=True, edit=FAST_EDIT),
        "direct+mask": Method("direct", masked=True),
        "direct+mask+polish": Method("direct", masked=True, vae_refine_steps=20),
        "direct+true-mask+polish": Method("direct", masked="truth", vae_refine_steps=20),
        "direct+separate": Method("direct", attend=separate_objects),
        "direct+masactrl": Method("direct", attend=lambda run, case: MasaCtrl(run), edit=WITHOUT_P2P),
        "direct+plug-and-play-attention": Method("direct", attend=lambda run, case: PlugAndPlay(run), edit=WITHOUT_P2P),
    }
)

# The same methods on cases of PIE-Bench, with the settings of its published code. Plug-and-play's code also injects
# features of a residual block, which are no attention: here is its other part alone.
PIE_BENCH_METHODS: Mapping[str, Method | None] = MappingProxyType(
    {
        **METHODS,
        "proximal": Method("proximal", invert={"quantile": 0.5}),  # .75 over source and target, see `proximal`
        "edit-friendly": Method(
            "edit-friendly",
            invert={"skip": 0.24, "source_guidance_scale": 1.0},
            edit={"kind": "auto", "self_max_queries": 16 * 16, "local_blend": None, "reweight": None},
        ),
        "direct+masactrl": Method("direct", describes_source=False, attend=published_masactrl, edit=WITHOUT_P2P),
        "direct+plug-and-play-attention": Method(
            "direct",
            invert={"negative_prompt": "ugly, blurry, black, low res, unrealistic"},
            attend=published_plug_and_play_attention,
            edit=WITHOUT_P2P,
        ),
    }
)

# Options of `Pipeline.edit`: for the model that ships, as its card recommends; and for PIE-Bench, as published.
TINY_SETTINGS: Mapping[str, Any] = MappingProxyType({"cross_replace": 0.8, "self_replace": 0.8})
PIE_BENCH_SETTINGS: Mapping[str, Any] = MappingProxyType({"cross_replace": 0.4, "self_replace": 0.6, "kind": "refine"})
PIE_BENCH_WEIGHT = 2.0  # of the word that is new

METRICS = (
    "psnr",
    "ssim",
    "mse",
    "psnr_kept",
    "psnr_filled",
    "ssim_filled",
    "mse_filled",
    "lpips_filled",
    "structure",
    "structure_dino",
    "success",
    "clip",
    "clip_inside",
    "rows",
    "seconds",
)

REQUIRED_METRICS = frozenset({"psnr", "rows", "seconds"})  # every row has these


def edit_options(pipe: Pipeline, case: Case, method: Method) -> dict[str, Any]:
    """The options of `Pipeline.edit` for a case and a method."""
    options = pie_bench_options(pipe, case) if case.expected is None else tiny_options(pipe, case, method)
    return {**options, **method.edit}


def pie_bench_options(pipe: Pipeline, case: Case) -> dict[str, Any]:
    """The published settings of PIE-Bench: cross .4, self .6, refinement, a blend, and the new word twice as strong. A
    word that its prompt does not have is neither blended nor made stronger."""
    prompts = {"source": pipe.text.prompt(case.source), "target": pipe.text.prompt(case.target)}
    words: dict[str, Any] = {
        name: tuple(word for word in candidates if has_word(prompts[name], word))
        for name, candidates in case.blend.items()
    }
    if not any(words.values()):
        return {**PIE_BENCH_SETTINGS, "local_blend": None}
    weights = dict.fromkeys(words["target"], PIE_BENCH_WEIGHT)
    return {**PIE_BENCH_SETTINGS, "reweight": weights, "local_blend": LocalBlend(**words)}


def tiny_options(pipe: Pipeline, case: Case, method: Method) -> dict[str, Any]:
    """The settings for the cases that ship. A case without words, of which everything may change, is not blended."""
    blend = None
    if method.masked == "truth" and case.blend:
        blend = LocalBlend(mask=case.area(case.mask_runs, training_size(pipe)))
    elif method.masked and case.blend:
        words: Any = {name: tuple(words) for name, words in case.blend.items()}
        blend = LocalBlend(**words, pool=False, threshold="otsu", without_threshold="otsu")
    return {**TINY_SETTINGS, "local_blend": blend}


def methods_for(case: Case) -> Mapping[str, Method | None]:
    """The methods by their names, with the settings for this kind of case."""
    return PIE_BENCH_METHODS if case.expected is None else METHODS


def training_size(pipe: Pipeline) -> tuple[int, int]:
    """Rows and columns, in pixels, of the pictures that a model was trained on."""
    side = pipe.unet.config.sample_size or 64
    rows, columns = side if isinstance(side, tuple) else (side, side)
    return rows * pipe.vae.stride, columns * pipe.vae.stride


def has_word(prompt: Prompt, word: str) -> bool:
    """Whether a prompt has a word."""
    try:
        return bool(prompt.token_indices(word))
    except ValueError:
        return False


def edit_case(pipe: Pipeline, case: Case, method: Method | None, picture: Tensor, steps: int) -> Tensor:
    """The picture of a case, 3 H W in [-1, 1], edited by a method; None: encoded and decoded without an edit."""
    if method is None:
        return pipe.components.decode(pipe.components.encode(picture[None]))[0].cpu()
    run: Trajectory = pipe.invert(
        picture,
        case.source if method.describes_source else "",
        method=method.inversion,
        steps=steps,
        vae_refine_steps=method.vae_refine_steps,
        **method.invert,
    )
    return pipe.edit(run, case.target, attend=method.attend(run, case), **edit_options(pipe, case, method)).picture


@dataclass(frozen=True)
class Networks:
    """What measures edits besides their pixels. judge: for cases of the small world. The others are the user's."""

    judge: Judge | None = None
    clip: ClipScore | None = None
    lpips: Lpips | None = None
    dino: DinoStructure | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What tells them from others."""
        names = {"lpips": self.lpips and self.lpips.name, "dino": self.dino and self.dino.name}
        settings = {"judge": self.judge is not None, "clip": self.clip and self.clip.name}
        return settings | {key: name for key, name in names.items() if name is not None}


def measure_edit(case: Case, before: Tensor, after: Tensor, networks: Networks) -> dict[str, float]:
    """The figures of an edit.

    psnr, ssim, mse: how well the source is preserved outside of the true mask; …_filled: the same as the published code
    measures it, with the inside of the mask black in both pictures. psnr_kept: on the things that must not change.
    structure: structure distance of the whole pictures, by the features of the judge or CLIP; structure_dino: by DINO's
    keys, as published. success: whether the judge finds what it has to. clip, clip_inside: similarity of the target's
    prompt to the picture, and to the inside of the mask.
    An edit of a case of PIE-Bench is measured as its published code reads it from a file, see `published_picture`.
    """
    if case.expected is None:
        after = published_picture(after, case.picture.suffix)
    size = (before.shape[1], before.shape[2])
    mask = case.mask(size)
    preserved = preservation(before, after, mask)
    figures = {name: preserved[f"{name}_outside"] for name in ("psnr", "ssim", "mse")}
    figures |= pie_bench_masked_metrics(before, after, mask)
    figures["psnr_kept"] = psnr(before, after, case.area(case.kept_runs, size))
    judge, clip = networks.judge, networks.clip
    if networks.lpips is not None:
        outside = (torch.where(mask, -1.0, picture) for picture in (before, after))
        figures["lpips_filled"] = math.nan if mask.all() else networks.lpips(*outside)
    if networks.dino is not None:
        figures["structure_dino"] = networks.dino(before, after)
    if judge is not None and case.expected is not None:
        figures["success"] = float(judge.matches(after, case.expected))
        figures["structure"] = structure(judge.features(before), judge.features(after))
    if clip is not None:
        figures["clip"] = clip(after, case.target)
        figures["clip_inside"] = clip(torch.where(mask, after, -1.0), case.target)
        figures.setdefault("structure", structure(clip.features(before), clip.features(after)))
    return figures


def run_case(
    pipe: Pipeline,
    case: Case,
    name: str,
    folder: Path,
    steps: int,
    networks: Networks,
) -> None:
    """Runs a case by the method of a name, and writes its figures and its picture."""
    before = fit_image(read_image(case.picture), training_size(pipe), "stretch")
    counter, began = RowCounter(), time.perf_counter()
    after = edit_case(pipe.counting(counter), case, methods_for(case)[name], before, steps)
    cost = {"rows": float(counter.rows), "seconds": time.perf_counter() - began}
    figures = measure_edit(case, before, after, networks) | cost
    result_files(folder).write(case, name, figures, after, f"{case.source} -> {case.target}")


def result_files(folder: Path) -> ResultFiles:
    """The files of this benchmark in a folder."""
    return ResultFiles(folder, METRICS, REQUIRED_METRICS)


def jobs_of(cases: Sequence[Case], methods: Sequence[str]) -> list[tuple[Case, str]]:
    """Each case by each method. Each is inverted and edited on its own."""
    return [(case, name) for name in methods for case in cases]


def run_benchmark(
    pipe: Pipeline,
    cases: Sequence[Case],
    methods: Sequence[str],
    folder: Path,
    *,
    steps: int = DDIMScheduler.default_steps,
    networks: Networks = Networks(),
    shard: Shard = ALL_UNITS,
    join: Sequence[Path] | None = None,
    make_pool: Callable[[], WorkerPool] | None = None,
    make_ray_pool: Callable[[], RayPool] | None = None,
) -> list[Row]:
    """Runs the unfinished cases and returns the rows that are finished, one for each method and case.

    shard: runs only these of the jobs (`jobs_of`); each process that works in a folder has another. join: runs nothing
    and copies what is finished in these folders; then all must be. make_pool: makes the pool of processes that share
    the cases; these have the judge and no other network. make_ray_pool: makes the pool of workers of a Ray cluster,
    which have the same model and networks. Raises
    ValueError for a model that cannot invert photographs, for a folder that holds another benchmark, and for a damaged
    picture or row; all of it is checked before anything runs.
    """
    if pipe.components.extra_channels:
        raise ValueError("this model makes a picture from a picture: it can neither invert nor edit photographs")
    for case in cases:
        read_image(case.picture)
    settings = {
        "model": pipe.components.fingerprint,
        "steps": steps,
        **networks.settings,
        "cases": [case.description for case in cases],
    }
    files = result_files(folder)
    if join is None:
        files.claim(settings)
    else:
        files.join(join, settings, jobs_of(cases, methods))
    files.read(cases, methods)
    jobs = [(case, name, folder) for case, name in shard.of(jobs_of(cases, methods)) if not files.is_done(case, name)]
    if make_ray_pool is not None and jobs:
        units, write_unit = [(case, name) for case, name, _ in jobs], partial(write_case, steps=steps)
        run_units(make_ray_pool, write_unit, units, folder, name=lambda unit: f"{unit[0].name} by {unit[1]}")
    elif make_pool is not None and jobs:
        with make_pool() as pool:
            pool.run_all(run_case_in_worker, jobs)
    else:
        for case, name, _ in progress_bar(jobs):
            run_case(pipe, case, name, folder, steps, networks)
    return files.read(cases, methods)


def write_case(pipe: Pipeline, networks: Networks, unit: tuple[Case, str], folder: Path, steps: int) -> None:
    """`run_case` as a `WriteUnit` of a pool of Ray."""
    run_case(pipe, *unit, folder, steps, networks)


def run_case_in_worker(
    pipe: Pipeline, judge: Judge, number: int, job: tuple[Case, str, Path], steps: int
) -> CaseResult:
    """`run_case` as a `Measure` of a worker pool. The results are in files, so it returns none."""
    case, name, folder = job
    run_case(pipe, case, name, folder, steps, Networks(judge))
    return {}, []
