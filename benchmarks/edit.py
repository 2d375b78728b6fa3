"""Edits beside the community's Prompt-to-Prompt pipeline:

    python benchmarks/edit.py --peer pipeline_prompt2prompt.py [--model FOLDER] [--steps N] [--small PIXELS]

The peer's file is examples/community/pipeline_prompt2prompt.py of the diffusers repository. It forms every map, so that
nine prompts of it at once need a smaller picture (--small) than one edit does.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import alone, finish, in_turn, options, peak_mb, pixels_of, prompt2prompt_pipeline
from torch import Tensor

import minip2p
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.edit_plan import plan_edit
from minip2p.p2p.editing import run_edits
from minip2p.p2p.targets import EditTarget
from minip2p.pipeline import Pipeline
from minip2p.sampling.trajectory import SourceRun

SOURCE = "a cat on the beach"
EIGHT = [f"a {animal} on the beach" for animal in ("dog", "tiger", "lion", "horse", "cow", "pig", "sheep", "duck")]
TAUS = (0.4, 0.55, 0.7, 0.85, 1.0)
CROSS, SELF = 0.8, 0.4


@dataclass(frozen=True)
class Size:
    """Of a run: the sides of its picture in pixels, and its steps."""

    pixels: int
    steps: int

    @property
    def noise(self) -> Tensor:
        side = self.pixels // 8
        return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))


def ours(model: Pipeline, size: Size, *targets: str) -> SourceRun:
    """The pictures of the targets. Returns the source, as far as it was read; the peer makes its picture too."""
    runs = model.edit(
        SOURCE,
        list(targets),
        cross_replace=CROSS,
        self_replace=SELF,
        latents=size.noise,
        steps=size.steps,
        guidance_scale=7.5,
    )
    _ = [run.image for run in runs]
    assert runs[0].source_run is not None
    return runs[0].source_run


def rest_of_source(model: Pipeline, size: Size) -> float:
    """Seconds that the source's picture takes after an edit that did not ask for it."""
    source = ours(model, size, EIGHT[0])
    return in_turn(1, rest=lambda: source.whole.image)["rest"]


def theirs(peer: Any, size: Size, *targets: str) -> None:
    prompts, settings = [SOURCE, *targets], {"n_cross_replace": CROSS, "n_self_replace": SELF}
    peer(
        prompts,
        height=size.pixels,
        width=size.pixels,
        latents=size.noise.expand(len(prompts), -1, -1, -1),
        guidance_scale=7.5,
        num_inference_steps=size.steps,
        cross_attention_kwargs={"edit_type": "replace", **settings},
    )


def grid(model: Pipeline, size: Size) -> None:
    """5 × 5 values of τ. The rows that are counted must be those that the plan says."""
    old, new = (model.text.prompt(text) for text in (SOURCE, EIGHT[0]))
    plans = [plan_edit(old, new, size.steps, cross_replace=a, self_replace=b) for a, b in itertools.product(TAUS, TAUS)]
    cells = [EditTarget(EIGHT[0], plan) for plan in plans]
    origin = model.prepare(SOURCE, latents=size.noise, steps=size.steps, guidance_scale=7.5)
    before = model.rows
    _ = [run.image for run in run_edits(model, origin, cells)]
    counted, predicted = model.rows - before, plan_batches(model, origin, cells).cost(origin)
    assert counted == predicted, (counted, predicted)
    print(f"a grid of 5 x 5: {counted} rows counted and predicted, 25 runs of the peer take {25 * 4 * size.steps}")


def peak_of_one(folder: Path, steps: int) -> float:
    """The most memory that one edit has held, GB, of a process that has done nothing else."""
    model = minip2p.load(folder)
    ours(model, Size(pixels_of(model), steps), EIGHT[0])
    return peak_mb() / 1e3


def measured(given: Any) -> dict[str, float]:
    """All the figures; each line is printed when it is known."""
    model, half = minip2p.load(given.model), minip2p.load(given.model, dtype=torch.bfloat16)
    peer = prompt2prompt_pipeline(given.peer, given.model, torch.float32)
    whole = Size(pixels_of(model), given.steps)
    small = Size(given.small or whole.pixels, given.steps)
    for_grid = Size(small.pixels, given.grid_steps or given.steps)
    for size in {small.pixels: small, whole.pixels: whole}.values():  # what a first call alone takes
        warm = replace(size, steps=1)
        theirs(peer, warm, EIGHT[0])
        ours(model, warm, EIGHT[0])
    one = in_turn(given.rounds, theirs=lambda: theirs(peer, whole, EIGHT[0]), ours=lambda: ours(model, whole, EIGHT[0]))
    say(f"one edit at {whole.pixels} px", one["ours"], "a run of the peer", one["theirs"])
    rest = rest_of_source(model, whole)
    say("… with the rest of the source and its picture", one["ours"] + rest, "it", one["theirs"])
    eight = in_turn(1, ours=lambda: ours(model, whole, *EIGHT))["ours"]
    say("eight edits", eight, "eight runs of the peer", 8 * one["theirs"])
    ours(half, replace(whole, steps=1), EIGHT[0])
    bf16 = in_turn(given.rounds, ours=lambda: ours(half, whole, EIGHT[0]))["ours"]
    say("one edit in bfloat16", bf16, "a run of the peer in float32 (in bfloat16 it fails)", one["theirs"])
    nine = in_turn(1, theirs=lambda: theirs(peer, small, *EIGHT), ours=lambda: ours(model, small, *EIGHT))
    say(f"eight edits at {small.pixels} px", nine["ours"], "a run of the peer with nine prompts", nine["theirs"])
    many = in_turn(1, theirs=lambda: theirs(peer, for_grid, EIGHT[0]), ours=lambda: grid(model, for_grid))
    say(f"a grid of 5 x 5, {for_grid.steps} steps", many["ours"], "25 runs of the peer", 25 * many["theirs"])
    memory = alone(peak_of_one, given.model, min(given.steps, 4))
    print(f"the memory of one edit in a process of its own: {memory:.2f} GB")
    return {
        "edit_fp32": one["theirs"] / one["ours"],
        "edit_fp32_with_source": one["theirs"] / (one["ours"] + rest),
        "edit_bf16": one["theirs"] / bf16,
        "edits8": 8 * one["theirs"] / eight,
        "batch9": nine["theirs"] / nine["ours"],
        "grid25": 25 * many["theirs"] / many["ours"],
        "edit_peak_gb": memory,
    }


def say(what: str, ours: float, than: str, theirs: float) -> None:
    print(f"{what}: {ours:.2f} s, {theirs / ours:.2f} times as fast as {than} ({theirs:.2f} s)", flush=True)


def parsed() -> Any:
    parser = options("Edits beside the community's Prompt-to-Prompt pipeline", steps=10)
    parser.add_argument("--peer", type=Path, required=True, help="pipeline_prompt2prompt.py")
    parser.add_argument("--small", type=int, help="pixels of nine prompts at once and of the grid")
    parser.add_argument("--grid-steps", type=int, help="(default: as all others)")
    return parser.parse_args()


if __name__ == "__main__":
    finish(measured(parsed()))
