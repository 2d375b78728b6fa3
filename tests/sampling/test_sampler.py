"""The sampler: DDIM written out by hand, its determinism, its cost, and what it says when it goes wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import CallLog, deviations, distance, same_latents

import minip2p
from minip2p.attention.contract import fused
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunSettings
from minip2p.sched import ddim_step

STEPS, SEED, PROMPT = 4, 5, "a cat and a house on grass"
SMALL = dict(size=(64, 72), steps=2)


@pytest.fixture(scope="module")
def run(model):
    return model.generate(PROMPT, seed=SEED, steps=STEPS)


def test_a_run_is_ddim_on_eps_u_plus_w_eps_c_minus_eps_u(model, run):
    """Classifier-free guidance and eq. 12 of Song et al. (2020), literally. Float32, 1e-4 after 4 steps."""
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(SEED)).to(model.device)
    context, latents = model.text(["", PROMPT]).tokens, [x]
    for step in model.scheduler.steps(STEPS):
        eps_u, eps_c = model.unet(x.expand(2, -1, -1, -1), step.t, context).split(1)
        eps = eps_u + model.default_guidance * (eps_c - eps_u)
        x0 = (x - (1 - step.alpha_cumprod) ** 0.5 * eps) / step.alpha_cumprod**0.5
        x = step.alpha_cumprod_prev**0.5 * x0 + (1 - step.alpha_cumprod_prev) ** 0.5 * eps
        latents.append(x)
    assert run.latents.shape == (STEPS + 1, 4, 16, 16) and run.steps == STEPS and run.seed == SEED
    expected = torch.cat(latents).cpu()
    assert torch.equal(run.latents[0], expected[0]) and distance(run.latents, expected) <= 1e-4
    picture = model.vae.decode(x / model.vae.config.scaling_factor)[0].clamp(-1, 1).permute(1, 2, 0).cpu()
    assert run.image.size == (128, 128) and np.abs(np.asarray(run.image) - 127.5 * (picture.numpy() + 1)).max() <= 1


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_the_loop_equals_unet_and_ddim_step_to_the_bit(model, guidance_scale):
    start = model.prepare(PROMPT, RunSettings(seed=SEED, guidance_scale=guidance_scale, **SMALL))
    negative, words = model.text("").tokens, model.text(PROMPT).tokens
    x = start.noise.to(model.device)
    latents = [x]
    for step in model.scheduler.steps(start.steps):
        if guidance_scale == 1:
            eps = model.unet(x, step.t, words)
        else:
            attend = split_rows(fused)
            eps_u, eps_c = model.unet(torch.cat([x, x]), step.t, torch.cat([negative, words]), attend).split(1)
            eps = eps_u + guidance_scale * (eps_c - eps_u)
        x = ddim_step(x, eps, step.alpha_cumprod, step.alpha_cumprod_prev)
        latents.append(x)
    assert torch.equal(sample(model.components, start).latents, torch.cat(latents).cpu())


def test_a_correction_changes_the_prediction_that_a_step_takes(model):
    """It gets each step's latents and guided prediction. Unchanged predictions are the run to the bit."""
    start, calls = model.prepare(PROMPT, RunSettings(seed=SEED, **SMALL)), []

    def correct(i, x, prediction):
        calls.append((i, x.cpu()))
        return prediction + i

    plain, corrected = sample(model.components, start), sample(model.components, start, correct=correct)
    assert [i for i, _ in calls] == [0, 1] and torch.equal(torch.cat([x for _, x in calls]), corrected.latents[:-1])
    assert torch.equal(corrected.latents[1], plain.latents[1])
    step = model.scheduler.steps(2)[1]
    share, share_prev = step.alpha_cumprod, step.alpha_cumprod_prev
    moved = (1 - share_prev) ** 0.5 - (share_prev * (1 - share) / share) ** 0.5  # of x' where ε is larger by 1
    torch.testing.assert_close(corrected.latents[2] - plain.latents[2], torch.full((4, 8, 9), moved))
    same = sample(model.components, start, correct=lambda i, x, prediction: prediction)
    assert torch.equal(same.latents, plain.latents)


def split_rows(attend):
    """Attention of the first and of the second row in a call each, as the guidance has it."""
    return lambda q, k, v, site: torch.cat([attend(q[n : n + 1], k[n : n + 1], v[n : n + 1], site) for n in range(2)])


def test_a_seed_determines_the_picture_to_the_bit(model, run, capsys):
    second = model.generate(PROMPT, seed=SEED, steps=STEPS)
    assert same_latents(second, run) and np.array_equal(np.asarray(second.image), np.asarray(run.image))
    assert not same_latents(model.generate(PROMPT, seed=SEED + 1, steps=STEPS), run)
    assert capsys.readouterr() == ("", "")  # the progress bar is for terminals


def test_latents_are_the_noise_and_set_the_size(model, run):
    assert same_latents(model.generate(PROMPT, latents=run.latents[:1], steps=STEPS), run)
    wide = model.generate(PROMPT, latents=torch.randn(1, 4, 5, 9), steps=1)
    assert wide.latents.shape == (2, 4, 5, 9) and wide.image.size == (72, 40) and wide.seed is None


def test_a_run_does_not_share_memory_with_its_noise(model):
    noise = torch.randn(1, 4, 8, 8)
    run = model.generate(PROMPT, latents=noise, steps=1)
    first = run.latents[0].clone()
    noise.zero_()
    assert torch.equal(run.latents[0], first)


def test_at_guidance_1_the_conditional_rows_are_all_that_runs(model):
    log = CallLog()
    counted = model.counting(log)
    run = counted.generate(PROMPT, guidance_scale=1, **SMALL)
    assert log.calls == [1, 1]
    almost = counted.generate(PROMPT, guidance_scale=1.0000001, **SMALL)
    assert log.calls == [1, 1, 2, 2] and deviations(almost, run) <= 1e-4


def test_at_guidance_0_the_unconditional_rows_are_all_that_runs(model):
    log = CallLog()
    run = model.counting(log).generate(PROMPT, guidance_scale=0, **SMALL)
    assert log.calls == [1, 1]
    assert same_latents(run, model.generate("a dog", guidance_scale=0, **SMALL))
    assert deviations(model.generate(PROMPT, guidance_scale=1e-7, **SMALL), run) <= 1e-4


def test_latents_that_are_not_finite_are_an_error_that_names_the_step(model):
    class BrokenAtStep1:
        def at(self, step):
            return (lambda q, k, v, site: q / 0) if step == 1 else fused

        def __call__(self, q, k, v, site):
            return fused(q, k, v)

    with pytest.raises(ValueError, match="the latents are not finite after step 2"):
        model.generate(PROMPT, attend=BrokenAtStep1(), **SMALL)


def test_attention_is_asked_for_each_step(model):
    steps = []

    class LoggedSteps:
        def at(self, step):
            steps.append(step)
            return fused

        def __call__(self, q, k, v, site):
            raise AssertionError("`at` was not called")

    run = model.generate(PROMPT, seed=3, size=(64, 72), steps=3, attend=LoggedSteps())
    assert steps == [0, 1, 2]
    run.maps("cat")
    assert steps == 2 * [0, 1, 2]
    model.edit(run, "a dog and a house on grass", attend=fused)
    assert steps == 3 * [0, 1, 2]  # the source's steps, whose attention is its own


def test_progress_wraps_the_steps(model):
    wrapped = []
    start = model.prepare(PROMPT, RunSettings(**SMALL))
    sample(model.components, start, lambda steps: wrapped.extend(steps) or list(wrapped))
    assert wrapped == model.scheduler.steps(2)


def test_a_run_follows_its_conditioning(model):
    """Unconditional embeddings by step, the noise of DDPM steps, and proximal guidance each have their effect."""
    start = model.prepare(PROMPT, RunSettings(seed=SEED, negative_prompt="night", **SMALL))
    plain = sample(model.components, start)

    def conditioned(**options):
        return sample(model.components, replace(start, negative_prompt="", conditioning=Conditioning(**options)))

    night = model.text(["night", "night"])
    assert same_latents(conditioned(uncond_embeddings=night), plain)
    noise = torch.randn(2, 4, 8, 9)
    noisy = conditioned(uncond_embeddings=night, variance_noise=noise)
    step = model.scheduler.steps(2)[0]
    added = noisy.latents[1] - conditioned(uncond_embeddings=night, variance_noise=0 * noise).latents[1]
    torch.testing.assert_close(added, model.scheduler.ddpm_std(step) * noise[0], rtol=1e-4, atol=1e-4)
    proximal = conditioned(uncond_embeddings=night, proximal_quantile=0.8)
    assert distance(proximal.latents[1], plain.latents[1]) > 1e-3


def test_latents_are_float32_in_bfloat16():
    half = minip2p.load(dtype=torch.bfloat16)
    assert half.generate(PROMPT, **SMALL).latents.dtype == torch.float32
