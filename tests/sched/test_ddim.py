"""DDIM: parity with diffusers' schedulers in both directions, the equations by hand, and steps undone by inversion."""

import math
from itertools import pairwise, product

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from parity import check

from minip2p.config import SchedulerConfig
from minip2p.sched import DDIMScheduler, ddim_step, fresh_noise_steps, split_prediction
from minip2p.sched.ddim import ddim_inverse_step, ddpm_std, x0_between

SD15 = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    steps_offset=1,
    set_alpha_to_one=False,
)
CONFIGS = {
    "SD 1.5": SD15,
    "no offset, to one": SD15 | dict(steps_offset=0, set_alpha_to_one=True),
    "linear betas, 100 times": SD15 | dict(beta_schedule="linear", num_train_timesteps=100, steps_offset=0),
}
ZERO_SNR = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
PREDICTION_TYPES = ("epsilon", "v_prediction")
SIGNAL_SHARES = st.floats(0.004, 0.9999)
NUMBERS = st.floats(-5, 5)
no_deadline = settings(deadline=None)


def scheduler(**changes):
    return DDIMScheduler(SchedulerConfig.from_dict(SD15 | changes))


def random_latents(seed, steps):
    """Latents, and a prediction for each step."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, 5, 7, generator=g), torch.randn(steps, 1, 4, 5, 7, generator=g)


# Parity with diffusers


def diffusers_supports(name, spacing, steps):
    """diffusers indexes past the last timestep if a run takes all of them and there is an offset."""
    total = CONFIGS[name].get("num_train_timesteps", 1000)
    return steps < total or (steps == total and not (spacing == "leading" and CONFIGS[name]["steps_offset"]))


CASES = [
    case for case in product(CONFIGS, ("leading", "trailing"), (1, 4, 7, 50, 333, 1000)) if diffusers_supports(*case)
]


@pytest.mark.parametrize(("name", "spacing", "steps"), CASES)
def test_a_step_matches_diffusers_in_both_directions(name, spacing, steps):
    config = CONFIGS[name] | dict(timestep_spacing=spacing)
    worst = 0.0
    for prediction_type in PREDICTION_TYPES:
        forward = diffusers.DDIMScheduler(**config, prediction_type=prediction_type)
        inverse = DDIMInverseScheduler(**config, prediction_type=prediction_type)
        forward.set_timesteps(steps)
        inverse.set_timesteps(steps)
        scheduler = DDIMScheduler(SchedulerConfig.from_dict(dict(forward.config)))
        assert scheduler.timesteps(steps) == forward.timesteps.tolist() == inverse.timesteps.tolist()[::-1]
        sampled_steps = scheduler.steps(steps)[:: 1 + steps // 100] + scheduler.steps(steps)[-1:]
        x, predictions = random_latents(steps, len(sampled_steps))
        for step, prediction in zip(sampled_steps, predictions, strict=True):
            pairs = [(scheduler.step(x, prediction, step), forward.step(prediction, step.t, x).prev_sample)]
            if prediction_type == "epsilon":  # diffusers' inversion does not undo a step with the same v, see below
                inverted = inverse.step(prediction, step.t, x).prev_sample
                pairs.append((scheduler.step(x, prediction, step, "invert"), inverted))
            for actual, expected in pairs:
                # relative to the largest value, because float32 itself resolves about 1e-7 of each value
                worst = max(worst, ((actual - expected).abs().max() / expected.abs().max()).item())
    message = f"{name}, {spacing}, {steps} steps: at most {worst:.1e} of the largest value apart, allowed 1e-6"
    print(message)
    assert worst <= 1e-6, message


@pytest.mark.parametrize("steps", [1, 4, 7, 50, 333, 1000])
def test_linspace_timesteps_match_diffusers(steps):
    theirs = diffusers.DDIMScheduler(**SD15, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    assert scheduler(timestep_spacing="linspace").timesteps(steps) == theirs.timesteps.tolist()


# The x_0 of a step whose ends are known


@no_deadline
@given(NUMBERS, NUMBERS, SIGNAL_SHARES, SIGNAL_SHARES, st.floats(0, 0.9), st.sampled_from(PREDICTION_TYPES))
def test_x0_is_recovered_from_both_ends_of_a_step(x, prediction, start, end, share, prediction_type):
    """In float64, for both prediction types, and for steps with any σ² up to 0.9 (1 − ᾱ')."""
    assume(abs(start - end) > 1e-3)
    sigma = (share * (1 - end)) ** 0.5
    a, b = (1 - start) ** 0.5, (1 - end - sigma**2) ** 0.5
    assume(abs(a * end**0.5 - b * start**0.5) > 1e-4)
    x, prediction = (torch.tensor(value, dtype=torch.float64) for value in (x, prediction))
    _, x0 = split_prediction(x, prediction, start, prediction_type)
    x_prev = ddim_step(x, prediction, start, end, prediction_type, sigma)
    torch.testing.assert_close(x0_between(x, x_prev, start, end, sigma), x0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_schedulers_predicted_x0_is_recovered_at_every_step(spacing, prediction_type):
    """Relative to the largest value; measured in float32: 2e-5 at most in 50 steps."""
    actual = scheduler(timestep_spacing=spacing, prediction_type=prediction_type)
    x, predictions = random_latents(0, 50)
    noise = random_latents(1, 1)[1][0]
    for step, prediction in zip(actual.steps(50)[:-1], predictions, strict=False):
        x0 = actual.predicted_x0(x, prediction, step)
        assert torch.equal(x0, split_prediction(x, prediction, step.alpha_cumprod, prediction_type)[1])
        for z in (None, noise):
            recovered = actual.x0_between(x, actual.step(x, prediction, step, noise=z), step, z)
            assert float((recovered - x0).abs().max() / x0.abs().max()) < 1e-4


def test_a_step_between_equal_shares_determines_no_x0():
    x, x_prev = torch.zeros(2), torch.ones(2)
    assert torch.equal(x0_between(x, x_prev, 0.5, 0.5), x_prev)
    assert torch.equal(x0_between(x, x_prev, 0.5, 1.0), x_prev)  # a step to no noise ends at x_0


# The noise schedule


def test_the_noise_schedule_of_sd15_by_hand():
    actual = scheduler()
    assert actual.timesteps(50) == list(range(981, 0, -20))
    steps = actual.steps(50)
    assert steps[-1].t == 1 and steps[-1].alpha_cumprod_prev == pytest.approx(0.99915, abs=1e-7)  # 1 − β_0
    assert steps[-1].alpha_cumprod == pytest.approx((1 - 0.00085) * (1 - 0.00085477), abs=1e-7)
    assert actual.alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=1e-5)
    assert scheduler(set_alpha_to_one=True).steps(50)[-1].alpha_cumprod_prev == 1


@pytest.mark.parametrize("beta_schedule, power", [("scaled_linear", 2), ("linear", 1)])
def test_alpha_cumprod_is_the_running_product_of_one_minus_beta(beta_schedule, power):
    alpha_cumprod, low, high = 1.0, 0.00085 ** (1 / power), 0.012 ** (1 / power)
    for t, actual in enumerate(scheduler(beta_schedule=beta_schedule).alphas_cumprod.tolist()):
        alpha_cumprod *= 1 - (low + (high - low) * t / 999) ** power
        assert actual == pytest.approx(alpha_cumprod, rel=2e-5)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_from_1_to_1000_is_possible(spacing, offset):
    actual = scheduler(timestep_spacing=spacing, steps_offset=offset)
    for steps in range(1, 1001):
        timesteps = actual.timesteps(steps)
        assert len(timesteps) == steps and timesteps[0] <= 999 and timesteps[-1] >= 0
        # 1000 leading steps with an offset would begin at 1000; they begin with 999 twice instead.
        duplicates = int(steps == 1000 and spacing == "leading" and offset == 1)
        assert len(set(timesteps)) == steps - duplicates and sorted(timesteps, reverse=True) == timesteps


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_other_numbers_of_steps_are_errors(steps):
    with pytest.raises(ValueError, match=f"steps must lie between 1 and 1000, not {steps}"):
        scheduler().steps(steps)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_a_step_ends_where_the_next_begins(spacing):
    actual = scheduler(timestep_spacing=spacing)
    for steps in (1, 2, 3, 7, 50, 333, 501, 999, 1000):
        run = actual.steps(steps)
        assert all(a.alpha_cumprod_prev == b.alpha_cumprod for a, b in pairwise(run))
        assert run[-1].alpha_cumprod_prev == actual.alphas_cumprod[0]


def test_trailing_steps_lead_t_over_n_timesteps_down_as_in_diffusers():
    run = scheduler(timestep_spacing="trailing").steps(7)
    assert [step.t for step in run] == [999, 856, 713, 570, 428, 285, 142]
    alphas_cumprod = scheduler().alphas_cumprod.tolist()
    assert [step.alpha_cumprod_prev for step in run] == [alphas_cumprod[step.t - 142] for step in run]


# The equations


def test_ddim_step_is_eq_12_by_hand():
    """ᾱ = .64, x = 1, ε = .5: x_0 = (1 − .6 · .5) / .8 = .875; at ᾱ' = .36: .6 · .875 + .8 · .5 = .925."""
    x, half = torch.tensor(1.0), torch.tensor(0.5)
    assert split_prediction(x, half, 0.64, "epsilon")[1].item() == pytest.approx(0.875)
    assert ddim_step(x, half, 0.64, 0.36).item() == pytest.approx(0.925)
    # v = .5: ε = .8 · .5 + .6 · 1 = 1, x_0 = .8 · 1 − .6 · .5 = .5; at ᾱ' = .36: .6 · .5 + .8 · 1 = 1.1.
    assert [y.item() for y in split_prediction(x, half, 0.64, "v_prediction")] == pytest.approx([1.0, 0.5])
    assert ddim_step(x, half, 0.64, 0.36, "v_prediction").item() == pytest.approx(1.1)


@given(NUMBERS, NUMBERS, SIGNAL_SHARES)
@no_deadline
def test_v_is_sqrt_alpha_eps_minus_sqrt_one_minus_alpha_x0(eps, x0, alpha_cumprod):
    signal, noise = math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod)
    x, v = signal * x0 + noise * eps, signal * eps - noise * x0
    for prediction, prediction_type in ((eps, "epsilon"), (v, "v_prediction")):
        x_tensor, prediction_tensor = torch.tensor(x).double(), torch.tensor(prediction).double()
        split = split_prediction(x_tensor, prediction_tensor, alpha_cumprod, prediction_type)
        assert [y.item() for y in split] == pytest.approx([eps, x0], abs=2e-5)  # the inputs are rounded to float32


@given(NUMBERS, NUMBERS, SIGNAL_SHARES, SIGNAL_SHARES)
@no_deadline
def test_a_ddim_step_is_undone_by_the_step_back(x, eps, alpha, alpha_prev):
    x, eps = torch.tensor(x, dtype=torch.float64), torch.tensor(eps, dtype=torch.float64)
    stepped = ddim_step(x, eps, alpha, alpha_prev)
    assert ddim_step(stepped, eps, alpha_prev, alpha).item() == pytest.approx(x.item(), abs=1e-9)
    assert ddim_step(x, eps, alpha, alpha).item() == pytest.approx(x.item(), abs=1e-9)
    _, x0 = split_prediction(x, eps, alpha, "epsilon")
    assert split_prediction(stepped, eps, alpha_prev, "epsilon")[1].item() == pytest.approx(x0.item(), abs=1e-9)
    # The same ε corresponds to a different v at the other end.
    v, v_prev = (a**0.5 * eps - (1 - a) ** 0.5 * x0 for a in (alpha, alpha_prev))
    assert ddim_step(x, v, alpha, alpha_prev, "v_prediction").item() == pytest.approx(stepped.item(), abs=1e-9)
    assert ddim_step(stepped, v_prev, alpha_prev, alpha, "v_prediction").item() == pytest.approx(x.item(), abs=1e-9)
    undone = ddim_inverse_step(stepped, v, alpha, alpha_prev, "v_prediction")
    assert undone.item() == pytest.approx(x.item(), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 7, 50, 333, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("changes", [{}, {"prediction_type": "v_prediction"}, ZERO_SNR], ids=["noise", "v", "zero SNR"])
def test_a_run_is_undone_by_inversion_with_the_same_predictions(changes, spacing, steps):
    """Also from no signal at all (zero SNR, linspace), where v can be undone and noise could not."""
    actual, (x, eps) = scheduler(timestep_spacing=spacing, **changes), random_latents(steps, steps)
    run, y = list(zip(actual.steps(steps), eps.double(), strict=True)), x.double()
    for step, e in run:
        y = actual.step(y, e, step)
    assert steps == 1 or (y - x).std() > 0.03
    for step, e in reversed(run):
        y = actual.step(y, e, step, "invert")
    check(f"{changes}, {spacing}, {steps} steps and back", y, x.double(), 1e-6)


def test_the_step_from_no_signal_to_no_noise_cannot_be_undone_and_leads_to_the_noise():
    """x is not in x' = −v; at ᾱ = 0 only the noise is left, which is v's part."""
    x, v = (t[:1].double() for t in random_latents(0, 1))
    assert torch.equal(ddim_step(x, v, 0.0, 1.0, "v_prediction"), -v)
    assert ddim_inverse_step(-v, v, 0.0, 1.0, "v_prediction").isfinite().all()


# Zero terminal SNR


@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # with linspace, diffusers leads T // steps down
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_zero_terminal_snr_is_that_of_diffusers(spacing, steps):
    """The schedule, equal to the bit, and every step of a run. With trailing spacing the first is at no signal."""
    theirs = diffusers.DDIMScheduler(**SD15, **ZERO_SNR, timestep_spacing=spacing)
    actual = scheduler(**ZERO_SNR, timestep_spacing=spacing)
    assert torch.equal(actual.alphas_cumprod, theirs.alphas_cumprod) and actual.alphas_cumprod[-1] == 0
    assert actual.alphas_cumprod[0] == pytest.approx(scheduler().alphas_cumprod[0].item(), abs=1e-7)
    theirs.set_timesteps(steps)
    x, predictions = random_latents(steps, steps)
    y = x
    for step, prediction in zip(actual.steps(steps), predictions, strict=True):
        x, y = actual.step(x, prediction, step), theirs.step(prediction, step.t, y).prev_sample
    check(f"zero SNR, {spacing}, {steps} steps", x, y, 1e-5)


@given(st.integers(0, 999), NUMBERS, NUMBERS)
@no_deadline
def test_add_noise_is_ho_eq_4(t, x0, eps):
    noisy = scheduler().add_noise(torch.full((1, 1, 1, 1), x0), torch.full((1, 1, 1, 1), eps), torch.tensor([t])).item()
    alpha_cumprod = np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)[: t + 1] ** 2)
    assert noisy == pytest.approx(alpha_cumprod**0.5 * x0 + (1 - alpha_cumprod) ** 0.5 * eps, abs=5e-5)


def test_add_noise_takes_a_timestep_for_each_row():
    x0, noise = random_latents(0, 1)[0].expand(2, -1, -1, -1), random_latents(1, 1)[0].expand(2, -1, -1, -1)
    theirs = diffusers.DDIMScheduler(**SD15).add_noise(x0, noise, torch.tensor([0, 999]))
    check("add_noise", scheduler().add_noise(x0, noise, torch.tensor([0, 999])), theirs, 1e-6)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_the_last_step_may_end_at_alpha_cumprod_one(spacing):
    for steps in (1, 7, 50):
        assert scheduler(timestep_spacing=spacing, set_alpha_to_one=True).steps(steps)[-1].alpha_cumprod_prev == 1.0


# DDPM steps


@pytest.mark.parametrize("name", ["SD 1.5", "no offset, to one"])
def test_a_step_with_noise_is_the_ddpm_step_of_diffusers(name):
    """η = 1 with given noise, at every step. Float32, 1e-5."""
    theirs = diffusers.DDIMScheduler(**CONFIGS[name])
    theirs.set_timesteps(10)
    x, predictions = random_latents(0, 2)
    for step, t in zip(scheduler(**CONFIGS[name]).steps(10), theirs.timesteps, strict=True):
        expected = theirs.step(predictions[0], t, x, eta=1.0, variance_noise=predictions[1]).prev_sample
        actual = scheduler(**CONFIGS[name]).step(x, predictions[0], step, noise=predictions[1])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_fresh_noise_steps_are_those_of_diffusers_consistency_sampler(prediction_type):
    """Without its boundary condition, which rescales predictions; to x_0 in the end. float32, 1e-4."""
    actual = scheduler(prediction_type=prediction_type)
    theirs = diffusers.LCMScheduler(**SD15, prediction_type=prediction_type, timestep_scaling=1e6)
    x, predictions = random_latents(2, 8)
    steps = fresh_noise_steps(actual.steps(8), 1.0)
    theirs.set_timesteps(timesteps=[step.t for step in steps])
    g, expected = torch.Generator().manual_seed(3), x
    for step, t, prediction in zip(steps, theirs.timesteps, predictions, strict=True):
        drawn = torch.randn(x.shape, generator=torch.Generator().set_state(g.get_state()))
        expected = theirs.step(prediction, t, expected, generator=g).prev_sample
        x = actual.step(x, prediction, step, noise=drawn)
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_fresh_noise_steps_without_fresh_noise_are_ddims_to_x0():
    plain = scheduler().steps(5)
    steps = fresh_noise_steps(plain, 0.0)
    assert [step.sigma for step in steps] == [0] * 5 and steps[-1].alpha_cumprod_prev == 1
    assert [step[:3] for step in steps[:-1]] == [step[:3] for step in plain[:-1]]
    assert [step.sigma**2 / (1 - step.alpha_cumprod_prev) for step in fresh_noise_steps(plain, 0.25)[:-1]] == (
        pytest.approx([0.25] * 4)
    )


@pytest.mark.parametrize("eta", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_prediction_of_a_step_is_recovered_from_its_ends(prediction_type, eta):
    """In float32, for DDPM's steps (None) and those with fresh noise; measured: 2e-5 at most."""
    actual, (x, predictions) = scheduler(prediction_type=prediction_type), random_latents(0, 10)
    steps, noise = actual.steps(10), random_latents(1, 1)[1][0]
    for step, prediction in zip(steps if eta is None else fresh_noise_steps(steps, eta), predictions, strict=True):
        after = actual.step(x, prediction, step, noise=noise)
        recovered = actual.prediction_between(x, after, step, noise)
        torch.testing.assert_close(recovered, prediction, rtol=0, atol=1e-3)


def test_ddpm_std_by_hand():
    """(1 − .8) / (1 − .5) · (1 − .5 / .8) = .4 · .375 = .15"""
    assert ddpm_std(0.5, 0.8) == pytest.approx(math.sqrt(0.15))
