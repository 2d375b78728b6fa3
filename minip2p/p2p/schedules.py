"""Schedules: at which steps an edit acts, for each word, and how strongly words are re-weighted.

A step share is a share of the run: an end τ; a (start, end); or a (start, end, out), where the edit fades evenly to 0
between end and out.

On a run whose edits skip steps (edit-friendly inversion), step 0 of a schedule is the first step that is edited, as in
the published code, whose controller counts the steps that it sees. A share is still a share of all steps of the run: of
50 steps, 12 of which are skipped, τ = .4 is steps 12 to 31, and .8 lasts to the end.

Axes: t steps, j target tokens.
"""

from collections.abc import Hashable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from minip2p.p2p.published import token_positions
from minip2p.text.prompt import Prompt
from minip2p.validation import is_finite

StepShare = float | tuple[float, float] | tuple[float, float, float]


def cross_replace_alpha(
    cross_replace: StepShare | Mapping[Hashable, StepShare],
    prompt: Prompt,
    steps: int,
    *,
    skip_steps: int = 0,
    parity: bool = False,
) -> Tensor:
    """α (t, j) float32: the share by which a target token takes the source's cross-attention at each step.

    cross_replace: a step share; or step shares by word of the *target* prompt (as `Prompt.token_indices` takes words),
    where "default_" stands for all other tokens and is 1.0 if absent.
    The share f is row int(f · (steps + 1)), as in the published code (`get_time_words_attention_alpha`): at 50 steps
    .8 is row 40, .4 is row 20 and 1.0 is beyond the last. skip_steps: so many steps come before row 0.
    Raises ValueError for a word that is not in the prompt (parity: it is ignored) and for shares that are not
    0 ≤ start ≤ end ≤ 1.
    """
    by_word = cross_replace if isinstance(cross_replace, Mapping) else {"default_": cross_replace}
    shares: dict[Any, StepShare] = {"default_": 1.0, **by_word}  # "default_" comes first, wherever it was given
    alpha = torch.zeros(steps, len(prompt.ids))
    for word, share in shares.items():
        tokens = range(len(prompt.ids)) if word == "default_" else token_positions(prompt, word, parity)
        alpha[:, list(tokens)] = step_weights("cross_replace", share, steps, steps + 1, skip_steps)[:, None]
    return alpha


def step_weights(name: str, share: StepShare, steps: int, rows: int, skip_steps: int = 0) -> Tensor:
    """α of each step (t): 1 from start to end, then falling evenly to 0 at out. name: of the option, for errors.

    The share f of the run is step int(f · rows) after the skipped ones, where α is 0.
    """
    start, end, out = (int(bound * rows) for bound in parse_step_share(name, share))
    step = torch.arange(steps) - skip_steps
    falling = ((out - step) / (out - end + 1)).clamp(min=0)
    return torch.where(step < end, 1.0, falling) * (step >= start)


def step_range(name: str, share: StepShare, rows: int, skip_steps: int = 0) -> tuple[int, int]:
    """The steps [start, stop) at which `step_weights` is not 0."""
    start, _, out = parse_step_share(name, share)
    return skip_steps + int(start * rows), skip_steps + int(out * rows)


def equalizer(weights: Mapping[Hashable, float], prompt: Prompt, *, parity: bool = False) -> Tensor:
    """c (j) float32: the weight of each token's attention, 1 where none is given. Raises as `cross_replace_alpha`."""
    check_weights(weights)
    c = torch.ones(len(prompt.ids))
    for word, weight in weights.items():
        c[list(token_positions(prompt, word, parity))] = float(weight)
    return c


def parse_step_share(name: str, share: StepShare) -> tuple[float, float, float]:
    """(start, end, out) of a step share. Raises ValueError for anything else."""
    bounds: tuple[float, ...] = tuple(share) if isinstance(share, tuple | list) else (0.0, share)
    numbers = len(bounds) in (2, 3) and all(isinstance(bound, Real) for bound in bounds)
    if not numbers or sorted(bounds) != list(bounds) or not 0 <= bounds[0] <= bounds[-1] <= 1:
        raise ValueError(f"the steps of {name} are shares 0 <= start <= end <= 1 of a run, not {share!r}")
    return bounds[0], bounds[1], bounds[-1]


def check_weights(weights: Any) -> None:
    """Raises ValueError for anything but finite weights by word."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"reweight takes weights by word, as {{'fog': 2.0}}, not {weights!r}")
    for word, weight in weights.items():
        if not is_finite(weight):
            raise ValueError(f"the weight of {word!r} is {weight}, which is not a finite number")
