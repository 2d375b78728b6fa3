"""Schedules of cross- and self-attention by step and word, and the equalizer; parity with the published code."""

import published_data
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import tokenize

from minip2p.p2p.schedules import cross_replace_alpha, equalizer, step_range, step_weights


@pytest.mark.parametrize("share, rows", [(0.8, 40), (0.4, 20), (1.0, 50), (0, 0), (1, 50)])
def test_cross_replace_steps_of_50(share, rows):
    alpha = cross_replace_alpha(share, tokenize("a cat"), 50)
    assert alpha.shape == (50, 77) and alpha.dtype == torch.float32
    assert torch.equal(alpha, (torch.arange(50) < rows).float()[:, None].expand(50, 77))


def test_cross_replace_steps_by_word():
    p = tokenize("a cat, a giraffe")
    alpha = cross_replace_alpha({"cat": (0.2, 0.6), "default_": 0.8, "a#2": 0.0}, p, 50)
    assert alpha[:, 2].nonzero().flatten().tolist() == list(range(10, 30))  # int(.2 · 51), int(.6 · 51)
    assert alpha[:, 4].sum() == 0
    assert all(alpha[:, j].sum() == 40 for j in range(77) if j not in (2, 4))
    assert cross_replace_alpha({"cat": 0.5}, p, 50)[:, [0, 2]].sum(0).tolist() == [50, 25]  # default_ is 1.0


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_schedules_are_contiguous_and_self_steps_are_int_of_steps_times_share(steps, a, b):
    start, end = sorted((a, b))
    column = cross_replace_alpha((start, end), tokenize("a cat"), steps)[:, 0].tolist()
    first, stop = int(start * (steps + 1)), int(end * (steps + 1))
    assert column == [float(first <= t < stop) for t in range(steps)]
    assert step_range("self", (start, end), steps) == (int(steps * start), int(steps * end))
    assert step_range("self", end, steps) == (0, int(steps * end))
    weights = step_weights("self", (start, end), steps, steps).tolist()
    assert [n for n, alpha in enumerate(weights) if alpha] == list(range(int(steps * start), int(steps * end)))


def test_a_share_of_three_falls_linearly_after_its_end():
    """α is 1 on [start, end) and then takes n steps of 1 / (n + 1): of 10 steps (.2, .5, .8) → 3/4, 2/4, 1/4, 0."""
    falling = [0, 0, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert step_weights("self", (0.2, 0.5, 0.8), 10, 10).tolist() == falling
    assert step_weights("self", (0.2, 0.5, 0.5), 10, 10).tolist() == step_weights("self", (0.2, 0.5), 10, 10).tolist()
    assert step_range("self", (0.2, 0.5, 0.8), 10) == (2, 8)
    # The rows of the cross-attention's schedule are counted by steps + 1.
    alpha = cross_replace_alpha({"cat": (0.0, 0.5, 0.9), "default_": 0.0}, tokenize("a cat"), 9)
    assert alpha[:, 2].tolist() == pytest.approx([1] * 5 + [0.8, 0.6, 0.4, 0.2]) and not alpha[:, :2].any()


@pytest.mark.parametrize(
    "share", [-0.1, 1.1, (0.6, 0.2), (0, 1.5), (0, 0.5, 0.4), (0, 0.5, 0.6, 0.7), (0.1,), float("nan"), {"cat": 2.0}]
)
def test_shares_outside_of_the_run_are_refused(share):
    with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
        cross_replace_alpha(share, tokenize("a cat"), 50)
    if not isinstance(share, dict):
        with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
            step_range("self", share, 50)


def test_a_scheduled_word_that_is_missing_is_an_error_and_is_ignored_with_parity():
    p = tokenize("a Cat, running")
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        cross_replace_alpha({"dog": 0.5}, p, 50)
    assert torch.equal(cross_replace_alpha({"dog": 0.5, "cat": 0.5}, p, 50, parity=True), torch.ones(50, 77))
    assert cross_replace_alpha({"Cat,": 0.5}, p, 50, parity=True).sum(0)[:5].tolist() == [50, 50, 25, 25, 50]


def test_the_equalizer_weights_each_token_of_a_word():
    p = tokenize("a giraffe, a xylophone")
    c = equalizer({"xylophone": -2.5, "giraffe": 0}, p)
    expected = torch.ones(77)
    expected[list(p.token_indices("xylophone"))], expected[2] = -2.5, 0
    assert torch.equal(c, expected) and len(p.token_indices("xylophone")) > 1
    assert torch.equal(equalizer({"giraffe": 3}, p, parity=True), torch.ones(77))  # with parity the word is "giraffe,"
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        equalizer({"dog": 2}, p)
    with pytest.raises(ValueError, match="weight of 'giraffe' is nan"):
        equalizer({"giraffe": float("nan")}, p)


def published_controller(steps, skip, cross, self_):
    """What the published edit-friendly code does at each step of a run: its controller is only called after `skip`.

    The controller is made for all steps, and counts the steps that it sees.
    """
    cross_rows = [0 <= row < int(cross * (steps + 1)) for row in range(steps + 1)]
    self_steps = range(int(steps * self_))
    seen = [(cross_rows[current], current in self_steps) for current in range(steps - skip)]
    calls = [(False, False)] * skip + seen
    return [[float(value) for value in column] for column in zip(*calls, strict=True)]


@pytest.mark.parametrize("steps, skip", [(50, 12), (50, 0), (20, 4), (10, 9)])
@pytest.mark.parametrize("cross, self_", [(0.4, 0.6), (0.8, 0.4), (1.0, 1.0), (0.0, 0.0)])
def test_schedules_count_from_the_first_step_that_is_edited(steps, skip, cross, self_):
    cross_steps, self_steps = published_controller(steps, skip, cross, self_)
    alpha = cross_replace_alpha(cross, tokenize("a cat"), steps, skip_steps=skip)
    assert alpha[:, 2].tolist() == cross_steps
    assert step_weights("self", self_, steps, steps, skip).tolist() == self_steps
    first, stop = step_range("self", self_, steps, skip)
    assert [float(first <= step < stop) for step in range(steps)] == self_steps


def test_the_schedule_of_pie_bench_for_edit_friendly_inversion():
    """By hand: 50 steps of which 12 are skipped, cross .4, self .6 and a blend from .2 on."""
    alpha = cross_replace_alpha(0.4, tokenize("a cat"), 50, skip_steps=12)[:, 2]
    assert alpha.nonzero().flatten().tolist() == list(range(12, 32))
    assert step_weights("self", 0.6, 50, 50, 12).nonzero().flatten().tolist() == list(range(12, 42))
    fading = step_weights("self", (0.2, 0.5, 0.8), 10, 10, 2).tolist()
    assert fading == [0, 0, 0, 0, 1, 1, 1, 0.75, 0.5, 0.25]


def test_parity_of_the_schedule_with_the_published_code():
    published = published_data.schedules()
    for (_, target), alpha in zip(published_data.tokenized_pairs("swap"), published, strict=False):
        shares = {"default_": 0.8, target.text.split(" ")[0]: (0.2, 0.6)}
        assert torch.equal(cross_replace_alpha(shares, target, 50, parity=True), alpha)
    assert len(published) == 100 and published.min() == 0 and published.max() == 1


def test_a_schedule_leaves_its_argument_unchanged():
    shares = {"cat": (0.2, 0.6)}
    cross_replace_alpha(shares, tokenize("a cat"), 10)
    assert shares == {"cat": (0.2, 0.6)}
