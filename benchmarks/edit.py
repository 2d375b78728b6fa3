"""Edits beside the community's Prompt-to-Prompt pipeline:

    python benchmarks/edit.py --peer pipeline_prompt2prompt.py [--model FOLDER] [--steps N]

The peer's file is examples/community/pipeline_prompt2prompt.py of the diffusers repository.
"""

import itertools
import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import finish, in_turn, options, prompt2prompt_pipeline

import minip2p
from minip2p.edit import plan_edit
from minip2p.model import Model
from minip2p.replay import Target, edit, planned

SOURCE = "a cat on the beach"
EIGHT = [f"a {animal} on the beach" for animal in ("dog", "tiger", "lion", "horse", "cow", "pig", "sheep", "duck")]
TAUS = (0.4, 0.55, 0.7, 0.85, 1.0)
CROSS, SELF = 0.8, 0.4


@dataclass
class Ours:
    """Edits with their pictures, in a dtype."""

    folder: Path
    steps: int
    dtype: torch.dtype = torch.float32

    @cached_property
    def model(self) -> Model:
        return minip2p.load(self.folder, dtype=self.dtype)

    @cached_property
    def start(self) -> dict[str, Any]:
        side = self.model.unet.config.sample_size
        noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
        return {"latents": noise, "steps": self.steps, "guidance": 7.5}

    def edit(self, *targets: str) -> None:
        """The pictures of the targets and of the source, as the peer gives them."""
        runs = self.model.edit(SOURCE, list(targets), cross=CROSS, self_=SELF, **self.start)
        _ = [run.image for run in runs], runs[0].source.image

    def grid(self) -> None:
        """5 × 5 values of τ. The rows that are counted must be those that the plan says."""
        old, new = (self.model.text.prompt(text) for text in (SOURCE, EIGHT[0]))
        plans = [plan_edit(old, new, self.steps, cross=a, self_=b) for a, b in itertools.product(TAUS, TAUS)]
        cells, origin = [Target(EIGHT[0], plan) for plan in plans], self.model.start(SOURCE, **self.start)
        before = self.model.rows
        _ = [run.image for run in edit(self.model, origin, cells)]
        assert self.model.rows - before == planned(self.steps, cells).cost(origin)


def peak_gb(folder: Path, steps: int) -> float:
    """The memory of one edit in a process of its own, GB."""
    done = subprocess.run([sys.executable, __file__, "--alone", "--model", folder, "--steps", str(steps)],
                          capture_output=True, text=True, check=True)  # fmt: skip
    return float(done.stdout)


def measured(given: Any) -> dict[str, float]:
    """All the figures; each line is printed when it is known."""
    ours, half = Ours(given.model, given.steps), Ours(given.model, given.steps, torch.bfloat16)
    peer = prompt2prompt_pipeline(given.peer, given.model, torch.float32)

    def theirs(*targets: str) -> None:
        prompts, settings = [SOURCE, *targets], {"n_cross_replace": CROSS, "n_self_replace": SELF}
        peer(prompts, latents=ours.start["latents"].expand(len(prompts), -1, -1, -1), guidance_scale=7.5,
             num_inference_steps=given.steps, cross_attention_kwargs={"edit_type": "replace", **settings})  # fmt: skip

    _ = ours.start, half.start  # loaded before anything is timed
    one = in_turn(given.rounds, theirs=lambda: theirs(EIGHT[0]), ours=lambda: ours.edit(EIGHT[0]))
    say("one edit", one["ours"], "a run of the peer", one["theirs"])
    eight = in_turn(1, theirs=lambda: theirs(*EIGHT), ours=lambda: ours.edit(*EIGHT))
    say("eight edits", eight["ours"], "eight runs of the peer", 8 * one["theirs"])
    say("eight edits", eight["ours"], "a run of the peer with nine prompts", eight["theirs"])
    grid = in_turn(1, ours=ours.grid)["ours"]
    say("a grid of 5 x 5", grid, "25 runs of the peer", 25 * one["theirs"])
    bf16 = in_turn(given.rounds, ours=lambda: half.edit(EIGHT[0]))["ours"]
    say("one edit in bfloat16", bf16, "a run of the peer in float32 (in bfloat16 it fails)", one["theirs"])
    return {
        "edit_fp32": one["theirs"] / one["ours"],
        "edit_bf16": one["theirs"] / bf16,
        "edits8": 8 * one["theirs"] / eight["ours"],
        "batch9": eight["theirs"] / eight["ours"],
        "grid25": 25 * one["theirs"] / grid,
    }


def say(what: str, ours: float, than: str, theirs: float) -> None:
    print(f"{what}: {ours:.2f} s, {theirs / ours:.2f} times as fast as {than} ({theirs:.2f} s)", flush=True)


def main() -> None:
    parser = options("Edits beside the community's Prompt-to-Prompt pipeline", steps=10)
    parser.add_argument("--peer", type=Path, help="pipeline_prompt2prompt.py")
    parser.add_argument("--alone", action="store_true", help="one edit of ours, and the peak of its memory in GB")
    given = parser.parse_args()
    if given.alone:
        Ours(given.model, given.steps).edit(EIGHT[0])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
    elif given.peer is None:
        parser.error("--peer is needed: the path of pipeline_prompt2prompt.py")
    else:
        figures = measured(given)
        figures["edit_peak_gb"] = peak_gb(given.model, min(given.steps, 4))
        print(f"the memory of one edit in a process of its own: {figures['edit_peak_gb']:.2f} GB")
        finish(figures)


if __name__ == "__main__":
    main()
