"""Edits, compared with the community's Prompt-to-Prompt pipeline:

    python benchmarks/edit.py --peer pipeline_prompt2prompt.py [--model FOLDER] [--steps N] [--small PIXELS]

The peer's file is examples/community/pipeline_prompt2prompt.py of the diffusers repository. It forms every attention
map, so nine prompts at once need a smaller picture (--small) than one edit does.
"""

import argparse
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import (
    diffusers_pipeline,
    in_new_process,
    make_parser,
    peak_memory_mb,
    print_figures,
    prompt2prompt_class,
    time_in_turn,
    training_side,
)
from torch import Tensor

import minip2p
from minip2p.checkpoints.components import RowCounter
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.editing import run_edits
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import make_targets
from minip2p.pipeline import Pipeline
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import SourceRun

SOURCE = "a cat on the beach"
EIGHT = [f"a {animal} on the beach" for animal in ("dog", "tiger", "lion", "horse", "cow", "pig", "sheep", "duck")]
TAUS = (0.4, 0.55, 0.7, 0.85, 1.0)
CROSS, SELF = 0.8, 0.4
GUIDANCE = 7.5


@dataclass(frozen=True)
class Size:
    """The size of a run: the side of its picture in pixels, and its steps."""

    pixels: int
    steps: int

    @property
    def noise(self) -> Tensor:
        """The initial noise, 1 4 h w."""
        side = self.pixels // 8
        return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a run, as `Pipeline.edit` takes them."""
        return {"latents": self.noise, "steps": self.steps, "guidance_scale": GUIDANCE}


def run_minip2p(pipe: Pipeline, size: Size, *targets: str) -> SourceRun:
    """Makes the pictures of the targets. Returns the source, as far as the edits ran it."""
    runs = pipe.edit(SOURCE, list(targets), cross_replace=CROSS, self_replace=SELF, **size.settings)
    _ = [run.image for run in runs]
    assert runs[0].source_run is not None
    return runs[0].source_run


def time_rest_of_source(pipe: Pipeline, size: Size) -> float:
    """Seconds for the source's picture after an edit. The peer makes it too; our edit makes it only on request."""
    source = run_minip2p(pipe, size, EIGHT[0])
    return time_in_turn(1, rest=lambda: source.finish().image)["rest"]


def run_peer(peer: Any, size: Size, *targets: str) -> None:
    """Makes the pictures of the source and the targets with the peer."""
    prompts = [SOURCE, *targets]
    peer(
        prompts,
        height=size.pixels,
        width=size.pixels,
        latents=size.noise.expand(len(prompts), -1, -1, -1).to(peer.device, peer.dtype),
        guidance_scale=GUIDANCE,
        num_inference_steps=size.steps,
        cross_attention_kwargs={"edit_type": "replace", "n_cross_replace": CROSS, "n_self_replace": SELF},
    )


def run_grid(pipe: Pipeline, size: Size) -> None:
    """Edits with 5 × 5 values of τ. The rows that are counted must be those that the plan predicts."""
    counter = RowCounter()
    components = pipe.counting(counter).components
    start = pipe.prepare(SOURCE, RunSettings(**size.settings))
    options = [EditOptions(cross_replace=a, self_replace=b) for a, b in itertools.product(TAUS, TAUS)]
    targets = [make_targets(components, start, [EIGHT[0]], each)[0] for each in options]
    _ = [run.image for run in run_edits(components, start, targets)]
    predicted = plan_batches(components, start, targets).predicted_rows(start)
    assert counter.rows == predicted, (counter.rows, predicted)
    print(f"a grid of 5 x 5: {counter.rows} rows counted and predicted; 25 runs of the peer take {100 * size.steps}")


def peak_of_one_edit(folder: Path, steps: int) -> float:
    """The most memory that one edit holds, in GB, in a process that has done nothing else."""
    pipe = minip2p.load(folder)
    run_minip2p(pipe, Size(training_side(pipe), steps), EIGHT[0])
    return peak_memory_mb() / 1e3


def measure(args: argparse.Namespace) -> dict[str, float]:
    """All figures. Each comparison is printed as soon as it is known."""
    pipe, half_pipe = minip2p.load(args.model), minip2p.load(args.model, dtype=torch.bfloat16)
    peer = diffusers_pipeline(args.model, torch.float32, prompt2prompt_class(args.peer))
    full = Size(training_side(pipe), args.steps)
    small = Size(args.small or full.pixels, args.steps)
    grid = Size(small.pixels, args.grid_steps or args.steps)
    for size in {small.pixels: small, full.pixels: full}.values():  # first calls are slower
        warm_up = replace(size, steps=1)
        run_peer(peer, warm_up, EIGHT[0])
        run_minip2p(pipe, warm_up, EIGHT[0])

    single = time_in_turn(
        args.rounds,
        peer=lambda: run_peer(peer, full, EIGHT[0]),
        minip2p=lambda: run_minip2p(pipe, full, EIGHT[0]),
    )
    report(f"one edit at {full.pixels} px", single["minip2p"], "a run of the peer", single["peer"])
    rest = time_rest_of_source(pipe, full)
    report("… with the rest of the source and its picture", single["minip2p"] + rest, "it", single["peer"])

    eight = time_in_turn(1, minip2p=lambda: run_minip2p(pipe, full, *EIGHT))["minip2p"]
    report("eight edits", eight, "eight runs of the peer", 8 * single["peer"])

    run_minip2p(half_pipe, replace(full, steps=1), EIGHT[0])
    half = time_in_turn(args.rounds, minip2p=lambda: run_minip2p(half_pipe, full, EIGHT[0]))["minip2p"]
    report("one edit in bfloat16", half, "a run of the peer in float32 (it fails in bfloat16)", single["peer"])

    nine = time_in_turn(1, peer=lambda: run_peer(peer, small, *EIGHT), minip2p=lambda: run_minip2p(pipe, small, *EIGHT))
    report(f"eight edits at {small.pixels} px", nine["minip2p"], "a run of the peer with nine prompts", nine["peer"])

    cells = time_in_turn(1, peer=lambda: run_peer(peer, grid, EIGHT[0]), minip2p=lambda: run_grid(pipe, grid))
    report(f"a grid of 5 x 5, {grid.steps} steps", cells["minip2p"], "25 runs of the peer", 25 * cells["peer"])

    memory = in_new_process(peak_of_one_edit, args.model, min(args.steps, 4))
    print(f"the memory of one edit in a process of its own: {memory:.2f} GB")
    return {
        "edit_fp32": single["peer"] / single["minip2p"],
        "edit_fp32_with_source": single["peer"] / (single["minip2p"] + rest),
        "edit_bf16": single["peer"] / half,
        "edits8": 8 * single["peer"] / eight,
        "batch9": nine["peer"] / nine["minip2p"],
        "grid25": 25 * cells["peer"] / cells["minip2p"],
        "edit_peak_gb": memory,
    }


def report(name: str, seconds: float, peer_name: str, peer_seconds: float) -> None:
    """Prints one comparison."""
    ratio = peer_seconds / seconds
    print(f"{name}: {seconds:.2f} s, {ratio:.2f} times as fast as {peer_name} ({peer_seconds:.2f} s)", flush=True)


def parse_args() -> argparse.Namespace:
    """The options of the command line."""
    parser = make_parser("Edits, compared with the community's Prompt-to-Prompt pipeline", steps=10)
    parser.add_argument("--peer", type=Path, required=True, help="the file pipeline_prompt2prompt.py")
    parser.add_argument("--small", type=int, help="side in pixels for nine prompts at once and for the grid")
    parser.add_argument("--grid-steps", type=int, help="steps of the grid (default: those of --steps)")
    return parser.parse_args()


if __name__ == "__main__":
    print_figures(measure(parse_args()))
