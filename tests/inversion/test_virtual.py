"""Virtual inversion: the published sampler beside ours, its source in closed form, and what its edits cost."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler as DiffusersDDIM
from paths import DATA
from runs import CallLog, distance, same_latents

from minip2p.baselines import MasaCtrl
from minip2p.config import LCMSchedulerConfig
from minip2p.inversion.virtual import virtual
from minip2p.p2p.algebra import refine_edit
from minip2p.p2p.alignment import refine_alignment
from minip2p.sched import DDIMScheduler, LCMScheduler

TARGET = "a dog on the beach"
NO_INJECTION = dict(cross_replace=0, self_replace=0)


def published_edit(model, run, x0, predict, eta=1.0):
    """The sampler of the published code, its formula written anew, in float64: the target's latents, steps c h w.

    run: gives the source's latents x_s and the noise. predict: (step, t, x_s, x) -> ε_s and ε.
    """
    alphas = torch.from_numpy(DiffusersDDIM(**model.scheduler.config.__dict__).alphas_cumprod.double().numpy())
    times, z, x = model.scheduler.timesteps(run.steps), run.conditioning.variance_noise.double(), run.latents[:1]
    x0, x, states = x0.double(), x.double(), []
    for i, t in enumerate(times):
        x_s, a = run.latents[i : i + 1].double(), alphas[t]
        e_s, e = (prediction.double() for prediction in predict(i, t, x_s, x))
        predicted = x0 + ((x - x_s) - (1 - a).sqrt() * (e - e_s)) / a.sqrt()
        if i == len(times) - 1:
            return torch.cat([*states, predicted])
        a_next = alphas[times[i + 1]]
        sigma = (eta * (1 - a_next)).sqrt()
        direction = (e - e_s) + (x_s - a.sqrt() * x0) / (1 - a).sqrt()
        x = a_next.sqrt() * predicted + (1 - a_next - sigma**2).clamp(min=0).sqrt() * direction + sigma * z[i : i + 1]
        states.append(x)


def plain_predictions(model, guidance_scale, prompts=("a cat on the beach", TARGET)):
    """ε_s at guidance 1, and ε with guidance, both of the UNet alone."""
    words, target, empty = (model.text(text).tokens for text in (*prompts, ""))

    def predict(i, t, x_s, x):
        e_s, e, e_u = (
            model.unet(state.float().to(model.device), t, tokens).cpu()
            for state, tokens in ((x_s, words), (x, target), (x, empty))
        )
        return e_s, e_u + guidance_scale * (e - e_u)

    return predict


# --- the source


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_the_source_is_the_picture_with_noise_of_a_seed(model, start, eta):
    """x_s = √ᾱ x_0 + √(1 − ᾱ) n, where n keeps √(1 − η) of itself a step; it ends at x_0, to the bit."""
    log = CallLog()
    run = virtual(model.counting(log).components, start, seed=3, eta=eta)
    assert not log.calls and torch.equal(run.latents[-1:], start.noise)
    drawn = torch.randn(start.steps, *start.noise.shape[1:], generator=torch.Generator().manual_seed(3))
    n = drawn[0]
    for i, step in enumerate(model.scheduler.steps(start.steps)):
        expected = step.alpha_cumprod**0.5 * start.noise[0] + (1 - step.alpha_cumprod) ** 0.5 * n
        torch.testing.assert_close(run.latents[i], expected)
        torch.testing.assert_close(run.predicted_x0(i).cpu(), start.noise, rtol=0, atol=2e-5)
        n = (1 - eta) ** 0.5 * n + eta**0.5 * drawn[(i + 1) % start.steps]
    assert same_latents(run, virtual(model.components, start, seed=3, eta=eta))
    assert not same_latents(run, virtual(model.components, start, seed=4, eta=eta))


def test_the_run_shows_what_the_vae_makes_of_the_photograph(model):
    picture = torch.rand(3, 64, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    run = model.invert(picture, "a cat", method="virtual", steps=2)
    assert torch.equal(run.picture, model.components.decode(model.components.encode(picture[None]))[0].cpu())


def test_the_noise_is_replaced_as_the_sampler_of_the_model_replaces_it(model, start):
    """By default: all of it for LCM, which samples with fresh noise; a tenth of it for a model that samples by DDIM."""
    config = LCMSchedulerConfig()
    lcm = replace(model.components, scheduler=LCMScheduler(config))
    for components, eta in ((model.components, 0.1), (lcm, 1.0)):
        run = virtual(components, start, seed=3)
        assert run.conditioning.eta == eta and same_latents(run, virtual(components, start, seed=3, eta=eta))


@pytest.mark.parametrize("guidance_scale, eta", [(4.0, 1.0), (4.0, 0.5), (4.0, 0.0), (1.0, 1.0)])
def test_with_the_guidance_of_the_source_an_edit_to_its_prompt_is_the_source(model, start, guidance_scale, eta):
    """Within rounding, float32; measured: 8e-6. With more guidance than the source's it is not."""
    start = replace(start, guidance_scale=guidance_scale)
    run = virtual(model.components, start, eta=eta, source_guidance_scale=guidance_scale)
    assert distance(model.edit(run, start.prompt).latents, run.latents) < 1e-4
    assert distance(model.edit(replace(run, guidance_scale=6.0), start.prompt).latents, run.latents) > 0.1


def test_with_the_default_guidance_of_the_source_an_unchanged_prompt_changes_the_picture(model):
    """The figures are those of docs/inversion.md: at most 1.4, where the latents' standard deviation is 0.84."""
    prompt = "on the street, a blue umbrella and a red lamp"
    run = model.invert(DATA / "renders/00.png", prompt, method="virtual", steps=6)
    difference = (model.edit(run, prompt).latents[-1] - run.latents[-1]).abs().max()
    assert abs(difference - 1.36) < 0.05 and abs(run.latents[-1].std() - 0.84) < 0.01


# --- the edit


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_an_edit_is_that_of_the_published_sampler(model, start, eta):
    """At the same noise, in float32; measured: 4e-5 in units of the latents."""
    run = virtual(model.components, start, seed=3, eta=eta)
    expected = published_edit(model, run, start.noise, plain_predictions(model, start.guidance_scale), eta)
    edit = model.edit(run, TARGET, **NO_INJECTION)
    assert distance(edit.latents[1:], expected) < 1e-4 < 0.1 < distance(edit.latents[-1], run.latents[-1])


@pytest.mark.parametrize("is_mutual", [False, True])
def test_controllers_are_those_of_the_published_code(model, start, is_mutual):
    """Cross-attention refined at its first 2 steps of 4, self-attention injected at the first, all sites; guidance 1.

    The published code counts (step + 1) / 4 ≤ τ for words and < τ for pixels: at .5 these are 2 steps and 1. With
    mutual self-attention the target's later queries read the source's keys and values.
    """
    start = replace(start, guidance_scale=1.0)
    run = virtual(model.components, start, eta=1.0)
    source, target = (model.text.prompt(text) for text in (start.prompt, TARGET))
    edit = refine_edit(*refine_alignment(source, target))
    R, S = edit.R.to(model.device), edit.S.to(model.device)
    tokens = torch.cat([model.text(text).tokens for text in (start.prompt, TARGET)])

    def predict(i, t, x_s, x):
        def attend(q, k, v, site):
            if not site.cross and i < 1:
                q, k = q[:1].expand_as(q), k[:1].expand_as(k)
            elif not site.cross and is_mutual and site.place == "up":
                k, v = k[:1].expand_as(k), v[:1].expand_as(v)
            maps = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            if site.cross and i < 2:
                maps = torch.cat([maps[:1], maps[:1] @ R + maps[1:] @ S])
            return maps @ v

        return model.unet(torch.cat([x_s, x]).float().to(model.device), t, tokens, attend).cpu().split(1)

    attend = MasaCtrl(run, start=0.25) if is_mutual else None
    options = dict(kind="refine", cross_replace=0.5, self_replace=0.25, self_max_queries=10**6, attend=attend)
    expected = published_edit(model, run, start.noise, predict)
    assert distance(model.edit(run, TARGET, **options).latents[1:], expected) < 1e-3


@pytest.mark.parametrize("is_zero_snr", [False, True])
def test_v_predictions_are_corrected_as_noise_is(model, start, is_zero_snr):
    """ε = √ᾱ v + √(1 − ᾱ) x: the published formula for ε, from predictions of v. The first step may have no signal."""
    config = replace(model.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=is_zero_snr)
    other = replace(model, components=replace(model.components, scheduler=DDIMScheduler(config)))
    run = virtual(other.components, start, eta=1.0)
    edit = other.edit(run, TARGET, **NO_INJECTION)
    assert torch.isfinite(edit.latents).all()
    if is_zero_snr:
        return
    predict_v = plain_predictions(other, start.guidance_scale)

    def predict(i, t, x_s, x):
        a = other.scheduler.steps(run.steps)[i].alpha_cumprod
        return [a**0.5 * v + (1 - a) ** 0.5 * state for v, state in zip(predict_v(i, t, x_s, x), (x_s, x), strict=True)]

    assert distance(edit.latents[1:], published_edit(other, run, start.noise, predict)) < 1e-4


def test_an_edit_of_an_edit_starts_from_what_the_first_has_changed(model, start):
    """Without guidance, the edit of an edit to its own prompt is the first edit. Measured: 2e-6."""
    run = virtual(model.components, replace(start, guidance_scale=1.0))
    first = model.edit(run, TARGET, **NO_INJECTION)
    second = model.edit(first, TARGET, **NO_INJECTION)
    assert first.conditioning is run.conditioning and distance(second.latents, first.latents) < 1e-4
    assert distance(model.edit(first, "a hat on the beach").latents[-1], first.latents[-1]) > 0.1


# --- cost


def test_a_step_costs_a_row_of_the_source_and_two_of_a_target(model, start):
    log = CallLog()
    run = virtual(model.components, start)
    model.counting(log).edit(run, TARGET)
    assert log.calls == [1, 2] * start.steps


def test_steps_that_are_skipped_cost_nothing(model, start):
    log = CallLog()
    run = virtual(model.components, start, skip=0.5)
    edit = model.counting(log).edit(run, TARGET)
    assert log.calls == [1, 2] * 2 and torch.equal(edit.latents[:3], run.latents[:3])
    assert not torch.equal(edit.latents[3], run.latents[3])


def test_skipped_steps_are_rounded_down(model, start):
    shares = (0.0, 0.24, 0.3, 0.49, 0.5, 0.99)
    skipped = [virtual(model.components, start, skip=skip).conditioning.skip_steps for skip in shares]
    assert skipped == [0, 0, 1, 1, 2, 3]


def test_the_source_runs_where_its_correction_was_not_recorded(model, start):
    log, run = CallLog(), virtual(model.components, start)
    recorded = model.record(run, cross_replace=0.0, self_replace=0.0)
    del recorded.qk_cache.tensors["correction.2"]
    edit = model.counting(log).edit(recorded, TARGET, **NO_INJECTION)
    assert log.calls == [2, 2, 1, 2, 2] and same_latents(edit, model.edit(run, TARGET, **NO_INJECTION))


def test_a_record_has_the_corrections_so_that_the_source_does_not_run(model, start, tmp_path):
    log = CallLog()
    run = virtual(model.components, start, skip=0.25)
    counted = model.counting(log)
    recorded = counted.record(run, self_replace=0.5, file=tmp_path / "run.safetensors")
    assert log.calls == [1] * 3
    corrections = {name for name in recorded.qk_cache.tensors if name.startswith("correction")}
    assert corrections == {"correction.1", "correction.2", "correction.3"}
    log.calls.clear()
    for source in (recorded, model.open(tmp_path / "run.safetensors")):
        edit = counted.edit(source, TARGET, self_replace=0.5)
        assert same_latents(edit, model.edit(run, TARGET, self_replace=0.5))
    assert log.calls == [2] * 6


# --- options


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(skip=1), "skip must be a number from 0 on, below 1, not 1"),
        (dict(seed=-1), "seed must be a whole number between 0 and"),
        (dict(seed=True), "seed must be a whole number between 0 and 2\\^63 - 1, not True"),
        (dict(eta=True), "eta must be a number from 0 to 1, not True"),
        (dict(eta=1.5), "eta must be a number from 0 to 1, not 1.5"),
        (dict(eta=float("nan")), "eta must be a number from 0 to 1, not nan"),
        (dict(eta="1"), "eta must be a number from 0 to 1, not '1'"),
        (dict(source_guidance_scale=0), "source_guidance_scale must be a finite number and not 0, not 0"),
        (dict(source_guidance_scale="2"), "source_guidance_scale must be a finite number and not 0, not '2'"),
    ],
)
def test_options_that_are_refused(model, start, options, message):
    with pytest.raises(ValueError, match=message):
        virtual(model.components, start, **options)
