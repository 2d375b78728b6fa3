"""TODO: describe."""

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
    cross: StepShare | Mapping[Hashable, StepShare], prompt: Prompt, steps: int, *, parity: bool = False
) -> Tensor:
    """α (steps, j) float32: 1 at the steps at which a target token takes the source's attention, else 0.

    cross: the steps, as shares of the run, see `course`; or these by word of the *target* prompt (anything that
    `Prompt.find` takes), with "default_" for all other tokens (1.0 if absent).
    A share f is row int(f · (steps + 1)), as in the published code: at 50 steps .8 → 40, .4 → 20, 1.0 → all.
    Raises ValueError for a word that is not there (parity: it is ignored) or shares that are not 0 ≤ start ≤ end ≤ 1.
    """
    given = cross if isinstance(cross, Mapping) else {"default_": cross}
    by_word: dict[Any, StepShare] = {"default_": 1.0, **given}
    alpha = torch.zeros(steps, len(prompt.ids))
    for word, share in by_word.items():  # "default_" first, wherever it was given
        tokens = list(range(len(prompt.ids)) if word == "default_" else token_positions(prompt, word, parity))
        alpha[:, tokens] = step_weights("cross", share, steps, steps + 1)[:, None]
    return alpha


def step_weights(which: str, share: StepShare, steps: int, rows: int) -> Tensor:
    """α of each step: 1 on [start, end), of (start, end) or end alone; of three, then falling evenly to 0 at the third.
    A share f of the run is step int(f · rows)."""
    start, end, out = (int(bound * rows) for bound in parse_step_share(which, share))
    step = torch.arange(steps)
    return torch.where(step < end, 1.0, ((out - step) / (out - end + 1)).clamp(min=0)) * (step >= start)


def step_range(which: str, share: StepShare, rows: int) -> tuple[int, int]:
    """The steps [start, stop) at which α of a `course` is not 0."""
    start, _, out = parse_step_share(which, share)
    return int(start * rows), int(out * rows)


def equalizer(weights: Mapping[Hashable, float], prompt: Prompt, *, parity: bool = False) -> Tensor:
    """c (j) float32: the weight of each token's attention, 1 where none is given. ValueError as in `schedule`."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights are given by word, as {{'fog': 2.0}}, not {weights!r}")
    c = torch.ones(len(prompt.ids))
    for word, weight in weights.items():
        if not is_finite(weight):
            raise ValueError(f"the weight of {word!r} is {weight}, which is not a finite number")
        c[list(token_positions(prompt, word, parity))] = float(weight)
    return c


def parse_step_share(which: str, share: StepShare) -> tuple[float, float, float]:
    """(start, end, out) of these, of a (start, end) or of an end alone. Raises ValueError for what is none of them."""
    bounds: tuple[float, ...] = tuple(share) if isinstance(share, tuple | list) else (0.0, share)
    rising = len(bounds) in (2, 3) and all(isinstance(one, Real) for one in bounds) and sorted(bounds) == list(bounds)
    if not rising or not 0 <= bounds[0] <= bounds[-1] <= 1:
        raise ValueError(f"the steps of {which} are shares 0 <= start <= end <= 1 of a run, not {share!r}")
    return bounds[0], bounds[1], bounds[-1]
