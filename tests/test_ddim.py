"""DDIM: diffusers' schedulers both ways, the equations by hand, and that a step can be undone."""

import math
from itertools import pairwise, product

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import check

from minip2p.config import SchedulerConfig
from minip2p.sched import DDIMScheduler, ddim_step, split_prediction

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

SD15 = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    steps_offset=1,
    set_alpha_to_one=False,
)
SETTINGS = {
    "SD 1.5": SD15,
    "no offset, to one": SD15 | dict(steps_offset=0, set_alpha_to_one=True),
    "linear betas, 100 times": SD15 | dict(beta_schedule="linear", num_train_timesteps=100, steps_offset=0),
}
SPACINGS = ("leading", "trailing", "linspace")
KINDS = ("epsilon", "v_prediction")
SHARES = st.floats(0.004, 0.9999)
NUMBERS = st.floats(-5, 5)


def schedule(**changes):
    return DDIMScheduler(SchedulerConfig.from_dict(SD15 | changes))


SCHEDULE = schedule()


def numbers(seed, steps):
    """A picture and a prediction for each step."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, 5, 7, generator=g), torch.randn(steps, 1, 4, 5, 7, generator=g)


# Parity with diffusers


def diffusers_can(named, spacing, steps):
    """It looks past the last time where all times are taken and there is an offset."""
    total = SETTINGS[named].get("num_train_timesteps", 1000)
    return steps < total or (steps == total and not (spacing == "leading" and SETTINGS[named]["steps_offset"]))


CASES = [case for case in product(SETTINGS, ("leading", "trailing"), (1, 4, 7, 50, 333, 1000)) if diffusers_can(*case)]


@pytest.mark.parametrize(("named", "spacing", "steps"), CASES)
def test_a_step_is_diffusers_both_ways(named, spacing, steps):
    given = SETTINGS[named] | dict(timestep_spacing=spacing)
    worst = 0.0
    for kind in KINDS:
        forward = diffusers.DDIMScheduler(**given, prediction_type=kind)
        inverse = DDIMInverseScheduler(**given, prediction_type=kind)
        forward.set_timesteps(steps)
        inverse.set_timesteps(steps)
        ours = DDIMScheduler(SchedulerConfig.from_dict(dict(forward.config)))
        assert ours.times(steps) == forward.timesteps.tolist() == inverse.timesteps.tolist()[::-1]
        some = ours.steps(steps)[:: 1 + steps // 100] + ours.steps(steps)[-1:]
        x, predictions = numbers(steps, len(some))
        for at, prediction in zip(some, predictions, strict=True):
            for mine, theirs in (
                (ours.step(x, prediction, at), forward.step(prediction, at.t, x).prev_sample),
                (ours.step(x, prediction, at, "invert"), inverse.step(prediction, at.t, x).prev_sample),
            ):
                # of the largest value, for float32 itself resolves no more: about 1e-7 of each
                worst = max(worst, ((mine - theirs).abs().max() / theirs.abs().max()).item())
    says = f"{named}, {spacing}, {steps} steps: at most {worst:.1e} of the largest value apart, allowed 1e-6"
    print(says)
    assert worst <= 1e-6, says


@pytest.mark.parametrize("steps", [1, 4, 7, 50, 333, 1000])
def test_linspace_times_are_diffusers(steps):
    theirs = diffusers.DDIMScheduler(**SD15, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    assert schedule(timestep_spacing="linspace").times(steps) == theirs.timesteps.tolist()


# The schedule


def test_the_schedule_of_sd15_by_hand():
    ours = schedule()
    assert ours.times(50) == list(range(981, 0, -20))
    steps = ours.steps(50)
    assert steps[-1].t == 1 and steps[-1].alpha_cumprod_prev == pytest.approx(0.99915, abs=1e-7)  # 1 − β_0
    assert steps[-1].alpha_cumprod == pytest.approx((1 - 0.00085) * (1 - 0.00085477), abs=1e-7)
    assert ours.alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=1e-5)
    assert schedule(set_alpha_to_one=True).steps(50)[-1].alpha_cumprod_prev == 1


@pytest.mark.parametrize("kind, power", [("scaled_linear", 2), ("linear", 1)])
def test_abar_is_the_running_product_of_one_minus_beta(kind, power):
    abar, low, high = 1.0, 0.00085 ** (1 / power), 0.012 ** (1 / power)
    for t, ours in enumerate(schedule(beta_schedule=kind).alphas_cumprod.tolist()):
        abar *= 1 - (low + (high - low) * t / 999) ** power
        assert ours == pytest.approx(abar, rel=2e-5)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_from_1_to_1000_is_possible(spacing, offset):
    ours = schedule(timestep_spacing=spacing, steps_offset=offset)
    for steps in range(1, 1001):
        times = ours.times(steps)
        assert len(times) == steps and times[0] <= 999 and times[-1] >= 0
        # 1000 leading steps with an offset would begin at 1000: they begin at 999 twice.
        twice = steps == 1000 and spacing == "leading" and offset
        assert len(set(times)) == steps - twice and sorted(times, reverse=True) == times


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_other_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps must lie between 1 and 1000, not {steps}"):
        schedule().steps(steps)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_a_step_ends_where_the_next_begins(spacing):
    ours = schedule(timestep_spacing=spacing)
    for steps in (1, 2, 3, 7, 50, 333, 501, 999, 1000):
        run = ours.steps(steps)
        assert all(a.alpha_cumprod_prev == b.alpha_cumprod for a, b in pairwise(run))
        assert run[-1].alpha_cumprod_prev == ours.alphas_cumprod[0]


def test_trailing_steps_lead_t_over_n_down_as_in_diffusers():
    run = schedule(timestep_spacing="trailing").steps(7)
    assert [step.t for step in run] == [999, 856, 713, 570, 428, 285, 142]
    abars = schedule().alphas_cumprod.tolist()
    assert [step.alpha_cumprod_prev for step in run] == [abars[step.t - 142] for step in run]


# The equations


def test_ddim_step_is_eq_12_by_hand():
    """ᾱ = .64, x = 1, ε = .5: x_0 = (1 − .6 · .5) / .8 = .875; at ᾱ' = .36: .6 · .875 + .8 · .5 = .925."""
    x, half = torch.tensor(1.0), torch.tensor(0.5)
    assert split_prediction(x, half, 0.64, "epsilon")[1].item() == pytest.approx(0.875)
    assert ddim_step(x, half, 0.64, 0.36).item() == pytest.approx(0.925)
    # v = .5: ε = .8 · .5 + .6 · 1 = 1, x_0 = .8 · 1 − .6 · .5 = .5; at ᾱ' = .36: .6 · .5 + .8 · 1 = 1.1.
    assert [y.item() for y in split_prediction(x, half, 0.64, "v_prediction")] == pytest.approx([1.0, 0.5])
    assert ddim_step(x, half, 0.64, 0.36, "v_prediction").item() == pytest.approx(1.1)


@given(NUMBERS, NUMBERS, SHARES)
def test_v_is_sqrt_abar_eps_minus_sqrt_one_minus_abar_x0(eps, x0, abar):
    signal, noise = math.sqrt(abar), math.sqrt(1 - abar)
    x, v = signal * x0 + noise * eps, signal * eps - noise * x0
    for prediction, kind in ((eps, "epsilon"), (v, "v_prediction")):
        found = split_prediction(torch.tensor(x).double(), torch.tensor(prediction).double(), abar, kind)
        assert [y.item() for y in found] == pytest.approx([eps, x0], abs=2e-5)  # the inputs are rounded to float32


@given(NUMBERS, NUMBERS, SHARES, SHARES)
def test_ddim_step_undoes_itself(x, eps, abar, abar_next):
    x, eps = torch.tensor(x, dtype=torch.float64), torch.tensor(eps, dtype=torch.float64)
    there = ddim_step(x, eps, abar, abar_next)
    assert ddim_step(there, eps, abar_next, abar).item() == pytest.approx(x.item(), abs=1e-9)
    assert ddim_step(x, eps, abar, abar).item() == pytest.approx(x.item(), abs=1e-9)
    assert split_prediction(there, eps, abar_next, "epsilon")[1].item() == pytest.approx(
        split_prediction(x, eps, abar, "epsilon")[1].item(), abs=1e-9
    )
    # The same ε as v is another v at the other end.
    _, x0 = split_prediction(x, eps, abar, "epsilon")
    v, v_next = (a**0.5 * eps - (1 - a) ** 0.5 * x0 for a in (abar, abar_next))
    assert ddim_step(x, v, abar, abar_next, "v_prediction").item() == pytest.approx(there.item(), abs=1e-9)
    assert ddim_step(there, v_next, abar_next, abar, "v_prediction").item() == pytest.approx(x.item(), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 7, 50, 333, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_a_run_is_undone_by_the_same_noise(spacing, steps):
    ours, (x, eps) = schedule(timestep_spacing=spacing), numbers(steps, steps)
    run, y = list(zip(ours.steps(steps), eps.double(), strict=True)), x.double()
    for at, e in run:
        y = ours.step(y, e, at)
    assert steps == 1 or (y - x).std() > 0.1
    for at, e in reversed(run):
        y = ours.step(y, e, at, "invert")
    check(f"{spacing}, {steps} steps there and back", y, x.double(), 1e-6)


@given(st.integers(0, 999), NUMBERS, NUMBERS)
def test_add_noise_is_ho_eq_4(t, x0, eps):
    noisy = SCHEDULE.add_noise(torch.full((1, 1, 1, 1), x0), torch.full((1, 1, 1, 1), eps), torch.tensor([t])).item()
    abar = np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)[: t + 1] ** 2)
    assert noisy == pytest.approx(abar**0.5 * x0 + (1 - abar) ** 0.5 * eps, abs=5e-5)


def test_add_noise_takes_a_time_for_each_row():
    x0, noise = numbers(0, 1)[0].expand(2, -1, -1, -1), numbers(1, 1)[0].expand(2, -1, -1, -1)
    theirs = diffusers.DDIMScheduler(**SD15).add_noise(x0, noise, torch.tensor([0, 999]))
    check("add_noise", schedule().add_noise(x0, noise, torch.tensor([0, 999])), theirs, 1e-6)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_the_last_step_may_end_at_one(spacing):
    for steps in (1, 7, 50):
        assert schedule(timestep_spacing=spacing, set_alpha_to_one=True).steps(steps)[-1].alpha_cumprod_prev == 1.0
