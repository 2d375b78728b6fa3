"""LCM's time steps, boundary condition and steps, compared with diffusers' LCMScheduler; and its algebra."""

import pytest
import torch
from diffusers import LCMScheduler as DiffusersLCM

from minip2p.config import LCMSchedulerConfig, SchedulerConfig
from minip2p.sched import DDIMScheduler, LCMScheduler, fresh_noise_steps

CONFIGS = [
    {},
    {"original_inference_steps": 100, "prediction_type": "v_prediction"},
    {"original_inference_steps": 33, "timestep_scaling": 0.05, "num_train_timesteps": 990},
    {"original_inference_steps": 500, "timestep_scaling": 0.2},
]


def schedulers(fields):
    """Ours and diffusers'. timestep_scaling below 1 makes the boundary condition large."""
    return LCMScheduler(LCMSchedulerConfig.from_dict(fields)), DiffusersLCM(**fields)


def test_the_defaults_are_those_of_diffusers():
    theirs = DiffusersLCM().config
    config = LCMSchedulerConfig.from_dict(dict(theirs))
    assert config == LCMSchedulerConfig() and config.original_inference_steps == 50 and config.timestep_scaling == 10
    assert torch.equal(LCMScheduler(config).alphas_cumprod, DiffusersLCM().alphas_cumprod)


@pytest.mark.parametrize("fields", CONFIGS)
def test_the_timesteps_and_the_boundary_condition_are_those_of_diffusers(fields):
    scheduler, theirs = schedulers(fields)
    for n in (1, 2, 3, 4, 7, 8, 16, scheduler.config.original_inference_steps):
        theirs.set_timesteps(n)
        assert scheduler.timesteps(n) == theirs.timesteps.tolist()
        for t in scheduler.timesteps(n):
            assert scheduler.boundary_scalings(t) == theirs.get_scalings_for_boundary_condition_discrete(t)


@pytest.mark.parametrize("fields", CONFIGS)
def test_a_run_is_that_of_diffusers(fields):
    """Four steps with the same predictions and the same noise, float32, 1e-4 of the latents' deviation."""
    scheduler, theirs = schedulers(fields)
    theirs.set_timesteps(4)
    g = torch.Generator().manual_seed(0)
    predictions, noise = torch.randn(4, 1, 4, 8, 8, generator=g), torch.randn(4, 1, 4, 8, 8, generator=g)
    x = y = torch.randn(1, 4, 8, 8, generator=g)
    for i, (step, t) in enumerate(zip(fresh_noise_steps(scheduler.steps(4), 1.0), theirs.timesteps, strict=True)):
        x0, x = scheduler.predicted_x0(x, predictions[i], step), scheduler.step(x, predictions[i], step, noise=noise[i])
        g = Fixed(noise[i])
        result = theirs.step(predictions[i], int(t), y, generator=g)
        torch.testing.assert_close(x0, result.denoised, atol=1e-4 * float(result.denoised.std()), rtol=1e-4)
        y = result.prev_sample
    torch.testing.assert_close(x, y, atol=1e-4 * float(y.std()), rtol=1e-4)


@pytest.fixture(autouse=True)
def fixed_noise(monkeypatch):
    """diffusers takes the noise of a `Fixed` instead of drawing it."""
    module = "diffusers.schedulers.scheduling_lcm.randn_tensor"
    monkeypatch.setattr(module, lambda shape, generator, **_: generator.noise)


class Fixed:
    def __init__(self, noise):
        self.noise = noise


@pytest.mark.parametrize("fields", CONFIGS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_prediction_between_two_latents_leads_from_one_to_the_other(fields, eta):
    """And x_0 between them is the one that was predicted, boundary condition included. Float64, 1e-6."""
    scheduler = schedulers(fields)[0]
    x, prediction, noise = torch.randn(3, 1, 4, 8, 8, dtype=torch.float64)
    for step in fresh_noise_steps(scheduler.steps(4), eta):
        end = scheduler.step(x, prediction, step, noise=noise)
        torch.testing.assert_close(
            scheduler.x0_between(x, end, step, noise), scheduler.predicted_x0(x, prediction, step), atol=1e-6, rtol=1e-6
        )
        between = scheduler.prediction_between(x, end, step, noise)
        torch.testing.assert_close(scheduler.step(x, between, step, noise=noise), end, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(between, prediction, atol=1e-5, rtol=1e-5)


def test_inversion_by_ddim_takes_the_same_timesteps_to_the_picture_itself():
    scheduler = schedulers({})[0]
    steps = scheduler.steps(4)
    assert [step.t for step in steps] == [999, 759, 499, 259] and steps[-1].alpha_cumprod_prev == 1
    assert [step.alpha_cumprod for step in steps[1:]] == [step.alpha_cumprod_prev for step in steps[:-1]]
    assert all(step.sigma is None for step in steps)
    ddim = DDIMScheduler(SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))
    x, prediction = torch.randn(2, 1, 4, 8, 8)
    assert torch.equal(scheduler.step(x, prediction, steps[1], "invert"), ddim.step(x, prediction, steps[1], "invert"))


@pytest.mark.parametrize("steps", [0, 51, 2.5])
def test_there_are_as_many_steps_as_the_distillation_had_points(steps):
    with pytest.raises(
        ValueError, match="steps must lie between 1 and 50 for this model, which is distilled for a few"
    ):
        schedulers({})[0].timesteps(steps)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"original_inference_steps": 501}, "original_inference_steps must lie between 1 and 500"),
        ({"original_inference_steps": 0}, "original_inference_steps must lie between 1 and 500"),
        ({"timestep_scaling": 0.0}, "timestep_scaling must be more than 0, not 0.0"),
        ({"_class_name": "DDIMScheduler"}, "is of the class 'DDIMScheduler', and only LCMScheduler is supported"),
    ],
)
def test_a_configuration_without_a_meaning_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LCMSchedulerConfig.from_dict(fields)
