"""DDIM inversion against diffusers, and the methods that need nothing else: each against its equation."""

from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import DDIMInverseScheduler
from runs import distance, mean_squared_error

from minip2p.inversion.ddim import ddim, ddim_inversion, direct_inversion, negative_prompt, proximal
from minip2p.io.files import shipped_weights
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.guidance import guided_noise, soft_threshold
from minip2p.sched import DDIMScheduler, ddim_step


@pytest.fixture(scope="module")
def pivots(model, start):
    return ddim_inversion(model.components, start).cpu()


def test_ddim_inversion_is_that_of_diffusers(model, start, pivots):
    """diffusers' DDIMInverseScheduler on our UNet's predictions. Float32, 1e-4 of latents of size 1 after 4 steps."""
    reference = DDIMInverseScheduler.from_pretrained(shipped_weights("tiny") / "scheduler")
    reference.set_timesteps(start.steps)
    x, words = start.noise.to(model.device), model.text(start.prompt).tokens
    for step, t in zip(reversed(model.scheduler.steps(start.steps)), reference.timesteps, strict=True):
        x = reference.step(model.unet(x, step.t, words), t, x).prev_sample
    assert torch.equal(pivots[-1:], start.noise) and len(pivots) == start.steps + 1
    error = distance(pivots[:1], x.cpu())
    print(f"DDIM inversion: {error:.1e} from diffusers")
    assert error < 1e-4


def test_a_step_of_v_prediction_is_undone_by_diffusers_sampling(model, start):
    """DDIMScheduler with the v of an inversion step leads back. DDIMInverseScheduler does not undo such a step."""
    scheduler = DDIMScheduler(replace(model.scheduler.config, prediction_type="v_prediction"))
    pivots = ddim_inversion(replace(model.components, scheduler=scheduler), start)
    reference = diffusers.DDIMScheduler.from_pretrained(
        shipped_weights("tiny") / "scheduler", prediction_type="v_prediction"
    )
    reference.set_timesteps(start.steps)
    words = model.text(start.prompt).tokens
    for i, t in enumerate(reference.timesteps):
        v = model.unet(pivots[i + 1 : i + 2], int(t), words)
        assert distance(reference.step(v, t, pivots[i : i + 1]).prev_sample, pivots[i + 1 : i + 2]) < 1e-5


def test_where_v_is_0_inversion_is_exact(model, start):
    """A model of latents of variance 1 predicts v = 0 everywhere: sampling leads back to the photograph."""
    scheduler = DDIMScheduler(replace(model.scheduler.config, prediction_type="v_prediction"))
    x = start.noise
    for step in reversed(scheduler.steps(10)):
        x = scheduler.step(x, torch.zeros_like(x), step, "invert")
    for step in scheduler.steps(10):
        x = scheduler.step(x, torch.zeros_like(x), step)
    assert distance(x, start.noise) < 1e-5


def test_v_undone_exactly_reconstructs_better_than_diffusers_step(model, start_of_render):
    """The shipped model as one that predicts v, of a picture: sampling at guidance 1 leads back to it more closely.

    Float32, 10 steps. Measured: 0.156 of the latents' deviation apart, 0.238 with diffusers' DDIMInverseScheduler, for
    four photographs of 64 x 64 pixels.
    """
    start = start_of_render(model, 10, guidance_scale=1.0)
    photo, words, steps = start.noise.to(model.device), model.text(start.prompt).tokens, model.scheduler.steps(10)
    scheduler = DDIMScheduler(replace(model.scheduler.config, prediction_type="v_prediction"))

    def v(x, step):
        signal, noise = step.alpha_cumprod**0.5, (1 - step.alpha_cumprod) ** 0.5
        return (model.unet(x, step.t, words) - noise * x) / signal

    errors = []
    for exact in (True, False):
        x = photo
        for step in reversed(steps):
            if exact:
                x = scheduler.step(x, v(x, step), step, "invert")
            else:
                x = ddim_step(x, v(x, step), step.alpha_cumprod_prev, step.alpha_cumprod, "v_prediction")
        for step in steps:
            x = scheduler.step(x, v(x, step), step)
        errors.append(float((x - photo).square().mean().sqrt() / photo.std()))
    print(f"v undone exactly: {errors[0]:.3f} of a deviation apart; by diffusers' step: {errors[1]:.3f}")
    assert errors[0] < 0.85 * errors[1]


def test_the_ddim_run_is_sampled_from_the_last_pivot(model, start, pivots, inverted):
    run = inverted("ddim")
    assert torch.equal(run.latents[:1], pivots[:1]) and run.guidance_scale == start.guidance_scale
    assert run.negative_prompt == "" and run.conditioning.uncond_embeddings is None


def test_at_guidance_1_sampling_undoes_inversion(model, start_of_render):
    """… as far as a step's prediction holds for the next: the finer the steps, the nearer."""
    errors = []
    for steps in (3, 12):
        start = start_of_render(model, steps, guidance_scale=1.0)
        errors.append(mean_squared_error(ddim(model.components, start), start.noise))
    assert errors[1] < errors[0] / 2


def test_direct_inversion_meets_the_picture_to_the_bit(model, start, pivots):
    run = direct_inversion(model.components, start)
    assert torch.equal(run.latents[-1:], start.noise) and torch.equal(run.latents, pivots)
    edit = model.edit(run, "a dog on the beach", local_blend="beach")
    assert torch.equal(edit.source_run.finish().latents, run.latents)


def test_the_offsets_of_direct_inversion_lead_to_the_pivots(model, start, pivots):
    """Ju et al. 2023, algorithm 1, literally: z_{i+1} = DDIM(z_i) + (z*_{i+1} − DDIM(z*_i)). Float32, 1e-4."""
    words, empty, pivots = model.text(start.prompt), model.text(""), pivots.to(model.device)
    z = pivots[:1]
    for i, step in enumerate(model.scheduler.steps(start.steps)):

        def ddim_step(x, step=step):
            eps = guided_noise(model.components, x, step.t, empty, words, guidance_scale=start.guidance_scale)
            return model.scheduler.step(x, eps, step)

        z = ddim_step(z) + (pivots[i + 1 : i + 2] - ddim_step(pivots[i : i + 1]))
    assert distance(z, pivots[-1:]) < 1e-4  # measured: 2e-5


def test_negative_prompt_inversion_samples_by_the_condition_alone(start, inverted):
    """ε_u + w (ε_c − ε_u) = ε_c: the same as guidance 1 from the same noise. Float32, 1e-4."""
    run = inverted("negative-prompt")
    assert run.negative_prompt == start.prompt and run.guidance_scale == start.guidance_scale
    assert distance(run.latents, inverted("ddim", 1).latents) < 1e-4


def test_negative_prompt_inversion_takes_no_other_negative_prompt(model, start):
    same = negative_prompt(model.components, replace(start, steps=1, negative_prompt=start.prompt))
    assert same.negative_prompt == start.prompt
    for method in (negative_prompt, proximal):
        with pytest.raises(ValueError, match="it takes no other"):
            method(model.components, replace(start, negative_prompt="fog"))


def test_proximal_guidance_keeps_edits_near_to_the_source(model, start):
    run = proximal(model.components, start, quantile=0.9)
    assert run.conditioning.proximal_quantile == 0.9 and run.negative_prompt == start.prompt
    assert proximal(model.components, replace(start, steps=1)).conditioning.proximal_quantile == 0.7
    runs = run, replace(run, conditioning=Conditioning())
    changes = [distance(model.edit(each, "a dog on the beach").latents[-1], run.latents[-1]) for each in runs]
    assert 0 < changes[0] < changes[1]


@pytest.mark.parametrize("q", [0.7, 0.75, 0.85])
def test_the_quantile_of_the_published_code_is_2q_minus_1_here(q):
    """That code takes it over source and target, and the source's difference is 0. 1e-3 of a deviation, of 4096 values.

    Its "l0" subtracts what lies within ± the threshold, which is the soft threshold.
    """
    target = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = torch.cat([torch.zeros_like(target), target])
    threshold = batch.abs().quantile(q)
    published = (batch - batch.clamp(-threshold, threshold))[1:]
    print(f"q = {q}: {distance(soft_threshold(target, 2 * q - 1), published):.1e} apart")
    assert distance(soft_threshold(target, 2 * q - 1), published) < 1e-3
    assert distance(soft_threshold(target, q), published) > 0.2


def test_latents_that_are_not_finite_are_an_error_of_the_step(model, start):
    components = with_broken_unet(model.components)
    with pytest.raises(ValueError, match="the latents are not finite after step 4"):  # inversion runs backwards
        ddim_inversion(components, start)


def with_broken_unet(components):
    """The same components, whose UNet predicts NaN. Its weights are sound."""
    unet = torch.nn.Module()
    unet.conv_in, unet.config, unet.reads_guidance = components.unet.conv_in, components.unet.config, False
    unet.forward = lambda x, *rest, **_: torch.full_like(x, torch.nan)
    return replace(components, unet=unet)


def test_progress_wraps_the_steps_of_the_inversion(model, start):
    wrapped = []

    def progress(steps):
        wrapped.append(list(steps))
        return wrapped[-1]

    steps = model.scheduler.steps(2)
    ddim(model.components, replace(start, steps=2), progress)
    assert wrapped == [steps[::-1], steps]
