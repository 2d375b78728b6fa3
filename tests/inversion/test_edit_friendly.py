"""Edit-friendly inversion: its noise leads back to the picture, and its edits take over the noise and skip steps."""

from dataclasses import replace

import pytest
import torch
from runs import CallLog, distance

from minip2p.inversion.edit_friendly import edit_friendly
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.editing import run_edits
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import make_targets
from minip2p.sampling.sampler import sample
from minip2p.sched import DDIMScheduler

NO_INJECTION = dict(cross_replace=0, self_replace=0)


@pytest.fixture(scope="module")
def run(inverted):
    return inverted("edit-friendly")


def test_the_noise_leads_back_and_is_large(model, start):
    """With its z the DDPM steps meet each x_t; their deviation is above 1, which is what makes them edit-friendly."""
    run = edit_friendly(model.components, start, skip=0.5, seed=3)
    assert run.conditioning.skip_steps == 2 and torch.equal(run.latents[-1:], start.noise)
    assert not run.conditioning.variance_noise[-1].any() and run.conditioning.variance_noise[:-1].std() > 1
    sampled = sample(model.components, replace(start, noise=run.latents[:1], conditioning=run.conditioning))
    assert distance(sampled.latents[:-1], run.latents[:-1]) < 1e-3
    assert torch.equal(run.latents, edit_friendly(model.components, start, seed=3).latents)
    assert not torch.equal(run.latents, edit_friendly(model.components, start, seed=4).latents)


def test_the_latents_are_the_picture_with_independent_noise(model, start):
    """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε_t, with another ε_t for each step."""
    run = edit_friendly(model.components, start, seed=3)
    noise = torch.randn(start.steps, *start.noise.shape[1:], generator=torch.Generator().manual_seed(3))
    for x, eps, step in zip(run.latents, noise, model.scheduler.steps(start.steps), strict=False):
        expected = step.alpha_cumprod**0.5 * start.noise[0] + (1 - step.alpha_cumprod) ** 0.5 * eps
        torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("skip, steps", [(0.0, 0), (0.24, 0), (0.25, 1), (0.99, 3)])
def test_skip_is_a_share_of_the_run(model, start, skip, steps):
    assert edit_friendly(model.components, start, skip=skip).conditioning.skip_steps == steps


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(skip=1), "skip must be a number from 0 on, below 1, not 1"),
        (dict(skip=-0.1), "skip must be a number from 0 on, below 1"),
        (dict(skip=None), "skip must be a number from 0 on, below 1"),
        (dict(source_guidance_scale=float("nan")), "source_guidance_scale must be a finite number, not nan"),
        (dict(source_guidance_scale="2"), "source_guidance_scale must be a finite number, not '2'"),
        (dict(seed="x"), "seed must be a whole number between 0 and"),
        (dict(seed=True), "seed must be a whole number between 0 and"),
        (dict(seed=-1), "seed must be a whole number between 0 and"),
        (dict(seed=1.5), "seed must be a whole number between 0 and"),
        (dict(seed=2**63), "seed must be a whole number between 0 and"),
    ],
)
def test_options_that_are_refused(model, start, options, message):
    with pytest.raises(ValueError, match=message):
        edit_friendly(model.components, start, **options)


def test_edits_skip_the_first_steps_of_their_source(model, run):
    log = CallLog()
    edits = model.counting(log).edit(run, ["a dog on the beach", "a hat on the beach"], **NO_INJECTION)
    assert log.rows == 3 + 4  # two steps are left; at the first of them all latents are equal
    for edit in edits:
        assert torch.equal(edit.latents[:3], run.latents[:3]) and not torch.equal(edit.latents[3], run.latents[3])


def test_schedules_of_edits_count_from_the_first_step_that_is_edited(model, run):
    """With 2 of 4 steps skipped, cross .2 is int(.2 · 5) = 1 step, self .5 is 2; a blend from .25 on begins 1 later."""
    options = EditOptions(cross_replace=0.2, self_replace=0.5, local_blend=LocalBlend("cat", "dog", start=0.25))
    (target,) = make_targets(model.components, run, ["a dog on the beach"], options)
    assert target.plan.cross_alpha[:, 2].tolist() == [0, 0, 1, 0]
    assert target.plan.self_alpha.tolist() == [0, 0, 1, 1]
    assert target.blend_state.first_step == target.blend_state.full_step == 3


def test_an_edit_of_a_recorded_run_does_not_run_its_source(model, run):
    """The record counts its steps as the edit does."""
    options = dict(cross_replace=0.2, self_replace=0.5)
    recorded = model.record(run, **options)
    assert {name.rsplit(".", 1)[1] for name in recorded.qk_cache.tensors if ".q." in name} == {"2", "3"}
    log = CallLog()
    edit = model.counting(log).edit(recorded, "a dog on the beach", **options)
    assert log.rows == 2 * 2
    assert distance(edit.latents, model.edit(run, "a dog on the beach", **options).latents) < 1e-5


def test_the_source_may_have_its_own_guidance_scale(model, start):
    """z of the first step by hand, from the conditional prediction alone; edits follow the run's scale."""
    run = edit_friendly(model.components, start, seed=3, source_guidance_scale=1.0)
    step, (x, x_next) = model.scheduler.steps(start.steps)[0], run.latents[:2].to(model.device).split(1)
    eps = model.unet(x, step.t, model.text(start.prompt).tokens)
    mean = model.scheduler.step(x, eps, step, noise=torch.zeros_like(x))
    z = ((x_next - mean) / model.scheduler.ddpm_std(step)).cpu()
    torch.testing.assert_close(run.conditioning.variance_noise[:1], z, atol=1e-4, rtol=1e-4)
    both = edit_friendly(model.components, start, seed=3)
    assert torch.equal(both.latents, run.latents) and run.guidance_scale == start.guidance_scale
    assert not torch.equal(both.conditioning.variance_noise, run.conditioning.variance_noise)


def test_the_noise_is_that_of_the_guided_prediction_with_the_negative_prompt(model, start):
    """z of the first step by hand: ε_u + w (ε_c − ε_u), where ε_u is of the negative prompt."""
    start = replace(start, negative_prompt="fog")
    run = edit_friendly(model.components, start)
    step, (x, x_next) = model.scheduler.steps(start.steps)[0], run.latents[:2].to(model.device).split(1)
    eps_uncond, eps_cond = (model.unet(x, step.t, model.text(text).tokens) for text in ("fog", start.prompt))
    eps = eps_uncond + start.guidance_scale * (eps_cond - eps_uncond)
    mean = model.scheduler.step(x, eps, step, noise=torch.zeros_like(x))
    z = ((x_next - mean) / model.scheduler.ddpm_std(step)).cpu()
    torch.testing.assert_close(run.conditioning.variance_noise[:1], z, atol=1e-3, rtol=1e-3)


def test_a_step_between_equal_time_steps_has_no_noise(model, start):
    """A run of all time steps with an offset begins with the last one twice; 4 here, and 1000 of a real model."""
    scheduler = DDIMScheduler(replace(model.scheduler.config, num_train_timesteps=4))
    first, second = scheduler.steps(4)[:2]
    assert first.t == second.t and scheduler.ddpm_std(first) == 0
    noise = edit_friendly(replace(model.components, scheduler=scheduler), start).conditioning.variance_noise
    assert noise.isfinite().all() and not noise[0].any() and noise[1].any()


def test_edits_take_over_the_noise_of_their_source(model, start):
    """Into its own prompt: z leads to each of the source's latents but the last. Float32, 1e-3."""
    run = edit_friendly(model.components, start, skip=0.25)
    edit = model.edit(run, start.prompt, **NO_INJECTION)
    assert distance(edit.latents[:-1], run.latents[:-1]) < 1e-3 < distance(edit.latents[-1], run.latents[-1])


def test_targets_that_differ_beyond_the_last_step_alone_are_one_row(model, run):
    targets = [
        make_targets(model.components, run, ["a dog on the beach"], EditOptions(cross_replace=c, self_replace=0))[0]
        for c in (0.4, 0.8, 1)  # at least int(.4 · 5) = 2 steps, and no more are edited
    ]
    assert plan_batches(model.components, run, targets).rows == [[], [], [[0, 1, 2]], [[0, 1, 2]]]
    first, *others = run_edits(model.components, run, targets)
    assert all(torch.equal(first.latents, other.latents) for other in others)


def test_an_edit_of_an_edit_follows_the_same_conditioning(model, run, tmp_path):
    log = CallLog()
    first = model.edit(run, "a dog on the beach")
    assert first.conditioning is run.conditioning
    second = model.counting(log).edit(first, "a dog on the grass", **NO_INJECTION)
    assert log.rows == 2 * 2 and torch.equal(second.latents[:3], first.latents[:3])
    first.save(tmp_path / "first.safetensors")
    reopened = model.edit(model.open(tmp_path / "first.safetensors"), "a dog on the grass", **NO_INJECTION)
    assert torch.equal(reopened.latents, second.latents)


def test_noise_that_is_not_finite_is_an_error_of_the_step(model, start):
    unet = torch.nn.Module()
    unet.conv_in, unet.config, unet.reads_guidance = model.unet.conv_in, model.unet.config, False
    unet.forward = lambda x, *rest, **_: torch.full_like(x, torch.nan)
    with pytest.raises(ValueError, match="the latents are not finite after step 1"):
        edit_friendly(replace(model.components, unet=unet), start)
