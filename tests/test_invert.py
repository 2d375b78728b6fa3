"""Inversions: each against its equation or an independent form of it; and that every edit takes what they return."""

import math
import warnings
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler
from PIL import Image

import minip2p
from minip2p.attention.contract import fused
from minip2p.checkpoints.components import soft_threshold
from minip2p.inversion.ddim import ddim_inversion
from minip2p.inversion.methods import METHODS
from minip2p.inversion.null_text import NullTextStep
from minip2p.io.files import shipped_weights
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import psnr
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.edit_plan import plan_edit
from minip2p.p2p.editing import run_edits
from minip2p.p2p.local_blend import LocalBlend, LocalBlendState
from minip2p.p2p.targets import EditTarget
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.trajectory import sample
from minip2p.sched import DDIMScheduler
from minip2p.sched.ddim import ddpm_std

PROMPT, STEPS, SIZE = "a cat on the beach", 4, (64, 72)
RENDER, CAPTION = "tests/data/renders/00.png", "on the street, a blue umbrella and a red lamp"


@pytest.fixture(scope="module")
def start(model):
    """What an inversion is given: a picture's latents in place of noise."""
    picture = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return model.prepare(PROMPT, steps=STEPS, guidance_scale=4.0, latents=model.encode(picture[None]))


def photograph(model, steps):
    """The same of a held-out render, which is a photograph to the model."""
    run = model.invert(RENDER, CAPTION, steps=1)
    return model.prepare(CAPTION, steps=steps, guidance_scale=4.0, latents=run.latents[-1:])


def rolled(model, run):
    """The run from its first latents with nothing but what it carries."""
    begin = model.prepare(
        run.prompt,
        latents=run.latents[:1],
        steps=run.steps,
        guidance_scale=run.guidance_scale,
        negative_prompt=run.negative_prompt,
    )
    return sample(model, replace(begin, conditioning=run.conditioning))


def distance(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_inversion_is_that_of_diffusers(model, start, kind):
    """diffusers' DDIMInverseScheduler on our UNet's predictions. Float32, 1e-4 of latents of size 1 after 4 steps."""
    other = minip2p.Pipeline(
        model.unet, model.vae, model.text, DDIMScheduler(replace(model.scheduler.config, prediction_type=kind))
    )
    config = diffusers.DDIMScheduler.from_pretrained(shipped_weights("tiny") / "scheduler").config
    theirs = DDIMInverseScheduler.from_config(config, prediction_type=kind)
    theirs.set_timesteps(STEPS)
    x, words = start.noise, model.text(PROMPT)
    for step, t in zip(reversed(other.scheduler.steps(STEPS)), theirs.timesteps, strict=True):
        with torch.no_grad():
            x = theirs.step(model.unet(x, step.t, words), t, x).prev_sample
    found = ddim_inversion(other, start)
    assert torch.equal(found[-1:], start.noise) and len(found) == STEPS + 1
    print(f"DDIM inversion, {kind}: {distance(found[:1], x):.1e} from diffusers")
    assert distance(found[:1], x) < 1e-4


def test_at_guidance_1_sampling_undoes_inversion(model, start):
    """… as far as a step's prediction holds for the next: the finer the steps, the nearer."""
    far = []
    for steps in (4, 40):
        run = METHODS["ddim"](model, replace(start, guidance_scale=1.0, steps=steps))
        far.append(float((run.latents[-1] - start.noise[0]).square().mean()))
    assert far[1] < far[0] / 2


def test_direct_inversion_meets_the_picture_to_the_bit(model, start):
    run = METHODS["direct"](model, start)
    assert torch.equal(run.latents[-1:], start.noise) and torch.equal(run.latents, ddim_inversion(model, start))
    edited = model.edit(run, "a dog on the beach", local_blend="beach")
    assert torch.equal(edited.source.latents, run.latents)


def test_the_offsets_of_direct_inversion_lead_to_the_pivots(model, start):
    """Ju et al. 2023, algorithm 1, literally: z_{i+1} = DDIM(z_i) + (z*_{i+1} − DDIM(z*_i)). Float32, 1e-5."""
    run = METHODS["direct"](model, start)
    words, empty, z = model.text(PROMPT), model.text(""), run.latents[:1]
    for i, step in enumerate(model.scheduler.steps(STEPS)):

        def led(x, step=step):
            with torch.no_grad():
                return model.scheduler.step(x, model.guided_noise(x, step.t, empty, words, 4.0, fused), step)

        z = led(z) + (run.latents[i + 1 : i + 2] - led(run.latents[i : i + 1]))
    assert distance(z, run.latents[-1:]) < 1e-5


def test_negative_prompt_inversion_goes_by_the_condition_alone(model, start):
    """ε_u + w (ε_c − ε_u) = ε_c: the same as guidance 1 from the same noise. Float32, 1e-4."""
    run = METHODS["negative-prompt"](model, start)
    assert run.negative_prompt == PROMPT and run.guidance_scale == 4.0
    assert distance(run.latents, METHODS["ddim"](model, replace(start, guidance_scale=1.0)).latents) < 1e-4


def test_the_proximal_map_by_hand():
    """λ is the median of |x|: 2, 2.5 and 3 for four, five and six numbers… here of 1 2 3 4 5: 3."""
    x = torch.tensor([1.0, -2, 3, -4, 5]).reshape(1, 1, 1, 5)
    assert soft_threshold(x, 0.5).flatten().tolist() == [0, 0, 0, -1, 2]
    both = torch.cat([x, 10 * x])  # each row by its own quantile
    assert soft_threshold(both, 0.5)[1].flatten().tolist() == [0, 0, 0, -10, 20]
    assert soft_threshold(x, 0.0) is x


def test_proximal_guidance_reaches_the_edit(model, start):
    run = METHODS["proximal"](model, start, quantile=0.9)
    assert run.conditioning.proximal == 0.9 and run.negative_prompt == PROMPT
    edited, plain = (
        model.edit(run, "a dog on the beach"),
        model.edit(replace(run, conditioning=type(run.conditioning)()), "a dog on the beach"),
    )
    gap = [distance(one.latents[-1], run.latents[-1]) for one in (edited, plain)]
    assert 0 < gap[0] < gap[1]


def null_text_as_published(model, start, inner):
    """Mokady et al. 2022, algorithm 1, as their code has it, without stopping early: diffusers' scheduler, Adam."""
    sched = diffusers.DDIMScheduler.from_pretrained(shipped_weights("tiny") / "scheduler")
    sched.set_timesteps(start.steps)
    ideal, words, empty = ddim_inversion(model, start), model.text(PROMPT), model.text("")
    x, found = ideal[:1], []
    for i, t in enumerate(sched.timesteps):
        empty = empty.clone().detach().requires_grad_()
        adam = torch.optim.Adam([empty], lr=1e-2 * (1 - i / (2 * start.steps)))
        with torch.no_grad():
            eps_c = model.unet(x, int(t), words)

        def led(x=x, eps_c=eps_c, t=t, empty=empty):
            eps_u = model.unet(x, int(t), empty)
            return sched.step(eps_u + start.guidance_scale * (eps_c - eps_u), t, x).prev_sample

        for _ in range(inner):
            loss = torch.nn.functional.mse_loss(led(), ideal[i + 1 : i + 2])
            adam.zero_grad()
            loss.backward()
            adam.step()
        found.append(empty.detach())
        with torch.no_grad():
            x = led()
    return torch.cat(found), x


def test_null_text_inversion_is_the_published_one(model, start):
    """The embeddings and the last latents, without stopping early, 2 updates. Float32, 1e-4."""
    run = METHODS["null-text"](model, start, inner=2, stop=0, stop_more=0)
    embeddings, last = null_text_as_published(model, start, 2)
    print(
        f"null-text: embeddings {distance(run.conditioning.uncond_embeddings, embeddings):.1e}, "
        f"latents {distance(run.latents[-1:], last):.1e} from the published"
    )
    assert distance(run.conditioning.uncond_embeddings, embeddings) < 1e-4 and distance(run.latents[-1:], last) < 1e-4


def test_null_text_inversion_comes_nearer_than_ddim_and_is_what_it_carries(model, start):
    start = photograph(model, 10)
    before = model.rows
    run = METHODS["null-text"](model, start)
    assert model.rows - before <= 10 * (1 + 1 + 11)
    far = [float((one.latents[-1] - start.noise[0]).square().mean()) for one in (run, METHODS["ddim"](model, start))]
    assert far[0] < far[1] / 2
    assert distance(rolled(model, run).latents, run.latents) < 1e-4
    assert not run.conditioning.uncond_embeddings.requires_grad and not run.latents.requires_grad


def test_null_text_inversion_within_inference_mode_finds_the_same(model, start):
    plain = METHODS["null-text"](model, start, inner=1)
    with torch.inference_mode():
        made = METHODS["null-text"](model, replace(start, noise=start.noise.clone()), inner=1)
    assert torch.equal(made.conditioning.uncond_embeddings, plain.conditioning.uncond_embeddings) and torch.equal(
        made.latents, plain.latents
    )


def test_null_text_inversion_stops_as_soon_as_it_is_near(model, start):
    """At guidance 1 the unconditional embedding has no say, and the pivot is met from the start: one row a step."""
    before = model.rows
    METHODS["null-text"](model, replace(start, guidance_scale=1.0), stop=10.0)
    assert model.rows - before == STEPS * 3


def test_null_text_inversion_that_goes_astray_says_where_and_keeps_its_best(model, start):
    with pytest.warns(UserWarning, match="went astray at step 1, "):
        run = METHODS["null-text"](model, start, rate=100.0, inner=2)
    best = METHODS["null-text"](model, start, inner=0)
    far = [float((one.latents[-1] - start.noise[0]).square().mean()) for one in (run, best)]
    assert far[0] <= far[1] * 1.5 and torch.isfinite(run.latents).all()


def test_a_step_of_null_text_inversion_returns_what_it_found(model, start):
    ideal, step = ddim_inversion(model, start), model.scheduler.steps(STEPS)[0]
    eps = model.guided_noise(ideal[:1], step.t, model.text(PROMPT), model.text(PROMPT), 1.0, fused)
    fit = NullTextStep(model, ideal[:1], step, eps, ideal[1:2], 4.0)
    given = model.text("")
    empty, x, worse = fit(given, 3, 0.01, 0.0)
    assert not worse and torch.equal(given, model.text("")) and not torch.equal(empty, given)
    with torch.no_grad():
        torch.testing.assert_close(fit.led(empty), x)


def kept_bytes(work):
    """What `work()` returns, and the bytes that it has kept for the way back."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = work()
    return made, sum(kept.values())


def test_null_text_inversion_by_checkpoints_keeps_less_and_finds_the_same(model, start):
    step = model.scheduler.steps(STEPS)[1]
    eps_c, pivot = torch.zeros_like(start.noise), torch.ones_like(start.noise)
    empty, made = model.text("").float().requires_grad_(), []
    for again in (False, True):
        fit = NullTextStep(model, start.noise, step, eps_c, pivot, 4.0, again)
        x, kept = kept_bytes(lambda fit=fit: fit.led(empty))
        made.append((x, kept, torch.autograd.grad(x.square().sum(), empty)[0]))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][2], made[1][2])
    assert made[1][2].abs().max() > 0
    assert made[1][1] < 0.5 * made[0][1]
    runs = [METHODS["null-text"](model, start, inner=2, checkpointing=given) for given in (False, True)]
    assert torch.equal(runs[0].latents, runs[1].latents)


def test_polished_latents_come_nearer_to_the_photograph(model):
    picture = read_image(RENDER)
    x = fit_image(picture, (128, 128))[None]
    plain, polished = model.encode(x), model.encode(x, refine_steps=10)
    gain = psnr(x[0], model.decode(polished)[0]) - psnr(x[0], model.decode(plain)[0])
    assert gain > 1.0  # 1.9 dB
    assert not polished.requires_grad
    assert torch.equal(model.encode(x, refine_steps=0), plain)
    run = model.invert(RENDER, CAPTION, steps=1, vae_refine_steps=10)
    assert torch.equal(run.latents[-1:], polished)
    with torch.inference_mode():
        assert torch.equal(model.encode(x, refine_steps=10), polished)


def test_polishing_never_loses(model):
    x = fit_image(read_image(RENDER), (128, 128))[None]
    plain = model.encode(x)
    assert torch.equal(model.refine_latents(plain, x, 3, rate=100.0), plain)


def test_ddpm_steps_are_those_of_diffusers(model):
    """η = 1 with a noise of one's own, at every step. Float32, 1e-5."""
    theirs = diffusers.DDIMScheduler.from_pretrained(shipped_weights("tiny") / "scheduler")
    theirs.set_timesteps(10)
    x, eps, z = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step, t in zip(model.scheduler.steps(10), theirs.timesteps, strict=True):
        expected = theirs.step(eps, t, x, eta=1.0, variance_noise=z).prev_sample
        torch.testing.assert_close(model.scheduler.step(x, eps, step, noise=z), expected, rtol=0, atol=1e-5)


def test_ddpm_sigma_by_hand():
    """(1 − .8) / (1 − .5) · (1 − .5 / .8) = .4 · .375 = .15"""
    assert ddpm_std(0.5, 0.8) == pytest.approx(math.sqrt(0.15))


def test_edit_friendly_inversion_leads_back_and_its_noise_is_large(model, start):
    """With its z the DDPM steps meet each x_t; they are not of deviation 1, which is what makes them edit-friendly."""
    run = METHODS["edit-friendly"](model, start, skip=0.5, seed=3)
    assert (
        run.conditioning.skip == 2
        and torch.equal(run.latents[-1:], start.noise)
        and not run.conditioning.noise[-1].any()
    )
    assert distance(rolled(model, run).latents[:-1], run.latents[:-1]) < 1e-3
    assert run.conditioning.noise[:-1].std() > 1
    assert torch.equal(run.latents, METHODS["edit-friendly"](model, start, seed=3).latents)
    assert not torch.equal(run.latents, METHODS["edit-friendly"](model, start, seed=4).latents)


def test_an_edit_skips_what_its_source_says(model, start):
    run = METHODS["edit-friendly"](model, start, skip=0.5)
    before = model.rows
    edited = model.edit(run, ["a dog on the beach", "a hat on the beach"], cross_replace=0, self_replace=0)
    assert model.rows - before == 3 + 4  # two steps are left; at the first of them all latents are alike
    for one in edited:
        assert torch.equal(one.latents[:3], run.latents[:3]) and not torch.equal(one.latents[3], run.latents[3])


def test_an_edit_takes_over_the_noise_of_its_source(model, start):
    """Edit-friendly, into its own prompt: z leads to each of the source's latents but the last. Float32, 1e-3."""
    run = METHODS["edit-friendly"](model, start, skip=0.25)
    same = model.edit(run, PROMPT, cross_replace=0, self_replace=0)
    assert distance(same.latents[:-1], run.latents[:-1]) < 1e-3 < distance(same.latents[-1], run.latents[-1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guidance", [0, 1, 4.0])
def test_the_plan_of_an_edit_predicts_its_rows_whatever_the_run_carries(model, start, method, guidance):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = METHODS[method](model, replace(start, guidance_scale=guidance))
    read, texts = model.text.prompt(PROMPT), [f"a {word} on the beach" for word in ("dog", "hat", "pig")]
    for blended in (False, True):
        targets = []
        for text in texts:
            new, blend = model.text.prompt(text), LocalBlend("beach", "beach")
            begun = LocalBlendState.start(blend, read, new, STEPS, (8, 9), model.unet.sites) if blended else None
            targets.append(EditTarget(text, plan_edit(read, new, STEPS), begun))
        before = model.rows
        run_edits(model, run, targets, batch=2)
        assert model.rows - before == plan_batches(model, run, targets).cost(run, 2)


def test_targets_that_differ_only_in_steps_that_are_skipped_are_one_row(model, start):
    run, read = METHODS["edit-friendly"](model, start, skip=0.5), model.text.prompt(PROMPT)
    new = model.text.prompt("a dog on the beach")
    targets = [
        EditTarget("a dog on the beach", plan_edit(read, new, STEPS, cross_replace=c, self_replace=0))
        for c in (0, 0.2, 0.4)
    ]
    assert plan_batches(model, run, targets).rows == [[], [], [[0, 1, 2]], [[0, 1, 2]]]
    one, *others = run_edits(model, run, targets)
    assert all(torch.equal(one.latents, other.latents) for other in others)


def test_an_edit_of_an_edit_goes_the_same_way(model, start, tmp_path):
    run = METHODS["edit-friendly"](model, start, skip=0.5)
    first = model.edit(run, "a dog on the beach")
    assert first.conditioning is run.conditioning
    before = model.rows
    second = model.edit(first, "a dog on the grass", cross_replace=0, self_replace=0)
    assert model.rows - before == 2 * 2 and torch.equal(second.latents[:3], first.latents[:3])
    first.save(tmp_path / "first.safetensors")
    again = model.edit(
        model.open(tmp_path / "first.safetensors"), "a dog on the grass", cross_replace=0, self_replace=0
    )
    assert torch.equal(again.latents, second.latents)


def test_proximal_guidance_holds_for_the_source_and_at_guidance_1(model, start):
    """ε_u + w prox(ε_c − ε_u), of the model's own predictions. Float32, 1e-5."""
    words, empty, x, step = model.text(PROMPT), model.text("night"), start.noise, model.scheduler.steps(STEPS)[1]
    with torch.no_grad():
        eps_u, eps_c = model.unet(torch.cat([x, x]), step.t, torch.cat([empty, words])).split(1)
    for w in (1.0, 4.0):
        for alike in (False, True):
            made = model.guided_noise(x, step.t, empty, words, w, fused, alike, 0.8)
            assert distance(made, eps_u + w * soft_threshold(eps_c - eps_u, 0.8)) < 1e-5
    night = replace(start, negative_prompt="night", conditioning=Conditioning(proximal_quantile=0.8))
    far = distance(
        sample(model, night).latents[1], sample(model, replace(night, conditioning=Conditioning())).latents[1]
    )
    assert far > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_null_text_inversion_learns_in_16_bits(dtype):
    half = minip2p.load(dtype=dtype)
    start = photograph(half, 10)
    runs = [METHODS["null-text"](half, start, inner=inner) for inner in (0, 10)]
    far = [float((run.latents[-1] - start.noise[0]).square().mean()) for run in runs]
    assert far[1] < far[0] / 2, far


def test_null_text_inversion_asks_less_of_later_steps(model, start):
    """stop + stop_more · i: with an allowance that only grows, the first step alone is worked at."""
    before = model.rows
    METHODS["null-text"](model, start, inner=2, stop=0, stop_more=100.0)
    assert model.rows - before == STEPS + STEPS + 3 + (STEPS - 1)


def test_noise_that_is_not_finite_is_an_error_of_the_step(model, start, monkeypatch):
    predict = model.guided_noise
    monkeypatch.setattr(model, "predict", lambda *given, **more: predict(*given, **more) * math.nan)
    for method, step in (("edit-friendly", 1), ("ddim", 4)):
        with pytest.raises(ValueError, match=f"not finite after step {step}"):
            METHODS[method](model, start)


def test_an_image_of_pillow_is_turned_upright_as_its_file_is(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(RENDER).convert("RGB").save(tmp_path / "phone.png", exif=exif)
    from_file = model.invert(tmp_path / "phone.png", PROMPT, steps=1)
    assert torch.equal(model.invert(Image.open(tmp_path / "phone.png"), PROMPT, steps=1).latents, from_file.latents)
    assert not torch.equal(model.invert(RENDER, PROMPT, steps=1).latents, from_file.latents)
    (tmp_path / "cut.png").write_bytes((tmp_path / "phone.png").read_bytes()[:-3000])
    with pytest.raises(ValueError, match="the picture cannot be read"):
        model.invert(Image.open(tmp_path / "cut.png"), PROMPT, steps=1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_run_that_edits_records_and_files_take(model, start, tmp_path, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four coarse steps may send null-text inversion astray
        run = METHODS[method](model, start)
    assert run.latents.shape[0] == STEPS + 1 and run.prompt == PROMPT and run.seed is None
    edited = model.edit(run, ["a dog on the beach", "a cat on the beach at night"], local_blend="beach")
    assert all(torch.isfinite(one.latents).all() and torch.equal(one.source.latents, run.latents) for one in edited)
    run.save(tmp_path / "run.safetensors")
    filed = model.record(model.open(tmp_path / "run.safetensors"), file=tmp_path / "recorded.safetensors")
    for origin in (filed, model.open(tmp_path / "recorded.safetensors")):
        again = model.edit(origin, ["a dog on the beach", "a cat on the beach at night"], local_blend="beach")
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(edited, again, strict=True))


def test_a_photograph_is_inverted_from_its_file_an_image_or_a_tensor(model):
    run = model.invert(RENDER, PROMPT, steps=2)
    image = Image.open(RENDER)
    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 127.5 - 1
    for given in (image, pixels):
        assert torch.equal(model.invert(given, PROMPT, steps=2).latents, run.latents)
    assert model.invert(RENDER, PROMPT, steps=2, size=(64, 72)).latents.shape == (3, 4, 8, 9)
    with torch.no_grad():
        expected = model.vae.decode(model.vae.encode(pixels[None])[0])[0].clamp(-1, 1)
    torch.testing.assert_close(run.picture, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "given, options, says",
    [
        (RENDER, dict(method="magic"), "the method is one of ddim, direct"),
        (torch.zeros(1, 3, 64, 64), {}, "a picture is 3 H W in"),
        (torch.zeros(1, 64, 64), {}, "a picture is 3 H W in"),
        (torch.full((3, 64, 64), 2.0), {}, "a picture is 3 H W in"),
        (torch.full((3, 64, 64), torch.nan), {}, "3 H W in"),
        (torch.zeros(3, 60, 64), {}, "multiples of 8"),
        (RENDER, dict(seed=1), "direct inversion has no seed, nor any other option"),
        (RENDER, dict(fit="squeeze"), "crop"),
        (RENDER, dict(size=(60, 60)), "multiples of 8"),
        (b"png", {}, "a picture is a file"),
        (RENDER, dict(method="proximal", quantile=1), "quantile"),
        (RENDER, dict(method="null-text", seed=1), "has no seed, only inner, rate, stop, stop_more"),
        (RENDER, dict(method="edit-friendly", skip=1), "skip must be a number from 0 on, below 1, not 1"),
        (RENDER, dict(steps=0), "steps must lie between"),
        (RENDER, dict(method=["ddim"]), "the method is one of"),
        (RENDER, dict(method="edit-friendly", seed="x"), "seed must be a whole number"),
        (RENDER, dict(method="edit-friendly", seed=-1), "seed must be a whole number"),
        (RENDER, dict(method="null-text", num_inner_steps=-1), "inner must be a whole number"),
        (RENDER, dict(vae_refine_steps=-1), "polish is a whole number of updates from 0 on, not -1"),
        (RENDER, dict(vae_refine_steps=2.5), "polish is a whole number"),
        (RENDER, dict(method="null-text", num_inner_steps=1.5), "inner must be a whole number"),
        (RENDER, dict(method="null-text", learning_rate="x"), "rate must be a number from 0 on, not 'x'"),
        (RENDER, dict(method="null-text", early_stop_epsilon=float("nan")), "stop must be a number"),
        (RENDER, dict(method="proximal", quantile=None), "quantile must be a number"),
        (RENDER, dict(method="negative-prompt", negative_prompt="fog"), "it takes no other"),
        (torch.zeros(3, 0, 0), {}, "a picture is 3 H W in"),
        (torch.zeros(3, 64, 64).bool(), {}, "floating-point numbers"),
        (torch.zeros(3, 64, 64), dict(size=(64, 64)), "leave size out"),
        (Image.new("RGB", (0, 0)), {}, "has no pixels"),
    ],
)
def test_what_cannot_be_inverted_is_one_clear_line(model, given, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        model.invert(given, PROMPT, **{"steps": 1} | options)
    assert "\n" not in str(caught.value)
