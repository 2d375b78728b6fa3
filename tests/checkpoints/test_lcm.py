"""Latent consistency models and LCM-LoRA beside diffusers' pipelines; and edits of their runs."""

import warnings
from dataclasses import replace

import diffusers
import pytest
import torch
from families import PROMPT, SD1, XL, copy_folder, make_components, smooth_picture, update_json
from parity import SD15_UNET, check, on_meta, share_weights
from safetensors.torch import save_file

import minip2p
from minip2p.attention.contract import fused
from minip2p.checkpoints.components import RowCounter
from minip2p.config import UNetConfig
from minip2p.errors import Notice
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.editing import run_edits
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import make_targets
from minip2p.sampling.settings import RunSettings
from minip2p.sched import DDIMScheduler, LCMScheduler
from minip2p.unet import UNet

STEPS = 4
TARGET = "a dog on the beach"
WITHOUT_CHECKER = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@pytest.fixture(scope="module")
def lcm(tmp_path_factory):
    """A small model that reads the guidance scale: diffusers' pipeline, its folder, and ours."""
    components = make_components("SD 1")
    components["unet"] = on_meta(diffusers.UNet2DConditionModel, **SD1, time_cond_proj_dim=32)
    share_weights(components["unet"], seed=0)
    components["scheduler"] = diffusers.LCMScheduler()
    pipe = diffusers.LatentConsistencyModelPipeline(**components, **WITHOUT_CHECKER)
    pipe.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("lcm") / "model"
    pipe.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        model = minip2p.load(folder)
    return pipe, folder, model


@pytest.fixture(scope="module")
def model(lcm):
    return lcm[2]


@torch.no_grad()
def with_diffusers(pipe, seed=1, **options):
    """The last latents of diffusers' pipeline, from a seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(PROMPT, num_inference_steps=STEPS, generator=generator, output_type="latent", **options).images


# --- generation


@pytest.mark.parametrize("w", [8.5, 3.0])
def test_four_steps_are_those_of_the_pipeline_from_the_same_seed(lcm, w):
    """The noise, the fresh noise of each step and the embedding of w. Float32, 1e-3 of the latents' deviation."""
    pipe, _, model = lcm
    counter = RowCounter()
    run = model.counting(counter).generate(PROMPT, seed=1, steps=STEPS, guidance_scale=w)
    check(f"LCM, w = {w}, float32", run.latents[-1:], with_diffusers(pipe, guidance_scale=w), 1e-3)  # 5e-6
    assert counter.rows == STEPS and run.conditioning.sampler == "LCM"


def test_the_default_guidance_is_the_pipelines_and_makes_a_difference(lcm):
    pipe, _, model = lcm
    assert model.default_guidance == 8.5 and isinstance(model.scheduler, LCMScheduler)
    run = model.generate(PROMPT, seed=1, steps=STEPS)
    check("LCM, default guidance, float32", run.latents[-1:], with_diffusers(pipe), 1e-3)
    other = model.generate(PROMPT, seed=1, steps=STEPS, guidance_scale=2.0)
    assert (other.latents[-1] - run.latents[-1]).abs().max() > 1e-3


def test_several_pictures_have_noise_of_their_own_in_each_step(model):
    runs = model.generate(PROMPT, seed=[1, 2], steps=STEPS)
    for run, seed in zip(runs, (1, 2), strict=True):
        check(
            f"seed {seed} in a batch, float32",
            run.latents,
            model.generate(PROMPT, seed=seed, steps=STEPS).latents,
            1e-4,
        )
    assert not torch.equal(*(run.conditioning.variance_noise for run in runs))


@pytest.mark.parametrize("w", [1.0, 2.0])
def test_a_unet_that_reads_no_guidance_has_the_classifier_free_one(family, tmp_path, w):
    """StableDiffusionPipeline with LCMScheduler; also v-prediction. The default is 1, and no guess is announced."""
    for name in ("SD 1", "SD 2, v"):
        folder = copy_folder(family(name)[1], tmp_path / name)
        scheduler = diffusers.LCMScheduler.from_config(family(name)[0].scheduler.config)
        pipe = diffusers.StableDiffusionPipeline(**family(name)[0].components | {"scheduler": scheduler})
        pipe.set_progress_bar_config(disable=True)
        scheduler.save_pretrained(folder / "scheduler")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            model = minip2p.load(folder)
        assert model.default_guidance == 1.0
        run = model.generate(PROMPT, seed=1, steps=STEPS, guidance_scale=w)
        check(f"{name}, w = {w}, float32", run.latents[-1:], with_diffusers(pipe, guidance_scale=w), 1e-3)


def test_an_xl_that_reads_the_guidance_scale(tmp_path):
    """As latent-consistency/lcm-sdxl does, whose pipeline is StableDiffusionXLPipeline."""
    components = make_components("SDXL")
    components["unet"] = on_meta(diffusers.UNet2DConditionModel, **XL, time_cond_proj_dim=16)
    share_weights(components["unet"], seed=0)
    components["scheduler"] = diffusers.LCMScheduler()
    pipe = diffusers.StableDiffusionXLPipeline(**components, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "xl")
    run = minip2p.load(tmp_path / "xl").generate(PROMPT, seed=1, steps=STEPS, guidance_scale=8.0)
    check("LCM of SDXL, float32", run.latents[-1:], with_diffusers(pipe, guidance_scale=8.0), 1e-3)


def test_an_lcm_lora_is_merged_and_sampled_by_lcm(family, tmp_path):
    """Its pipeline in diffusers: LCMScheduler from the model's own configuration, and W + scale · B A."""
    layer, folder = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", family("SD 1")[1]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, **WITHOUT_CHECKER)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    weight = pipe.unet.get_parameter(f"{layer}.weight")
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    save_file({f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}, tmp_path / "a.safetensors")
    plain = minip2p.load(folder, scheduler="lcm")
    merged = plain.merged(tmp_path / "a.safetensors", 0.8)
    assert merged.default_guidance == 1.0
    weight.data += 0.8 * up @ down
    run = merged.generate(PROMPT, seed=1, steps=STEPS)
    check("LCM-LoRA, float32", run.latents[-1:], with_diffusers(pipe, guidance_scale=1.0), 1e-3)
    assert not torch.equal(run.latents, plain.generate(PROMPT, seed=1, steps=STEPS).latents)


def test_the_names_and_shapes_of_the_official_unet():
    """LCM_Dreamshaper_v7: Stable Diffusion 1.5 with time_cond_proj_dim 256."""
    fields = SD15_UNET | {"time_cond_proj_dim": 256}
    theirs = on_meta(diffusers.UNet2DConditionModel, **fields).state_dict()
    with torch.device("meta"):
        actual = UNet(UNetConfig.from_dict(fields)).state_dict()
    assert {name: t.shape for name, t in actual.items()} == {name: t.shape for name, t in theirs.items()}
    assert actual["time_embedding.cond_proj.weight"].shape == (320, 256)


# --- loading and saving


def test_the_scheduler_may_be_chosen(lcm, family):
    """By default the configuration's."""
    sd1 = family("SD 1")[1]
    assert type(minip2p.load(sd1).scheduler) is type(minip2p.load(lcm[1], scheduler="ddim").scheduler) is DDIMScheduler
    chosen = minip2p.load(sd1, scheduler="lcm").scheduler.config
    assert (chosen.beta_start, chosen.beta_schedule, chosen.original_inference_steps) == (0.00085, "scaled_linear", 50)
    assert minip2p.load(scheduler="lcm").default_guidance == 1.0
    assert minip2p.load(scheduler="ddim").default_guidance == minip2p.load().default_guidance == 4.0
    with pytest.raises(ValueError, match="^the scheduler is ddim or lcm, not 'euler'$"):
        minip2p.load(sd1, scheduler="euler")


def test_a_saved_model_keeps_its_scheduler_for_both_programs(lcm, tmp_path):
    model = lcm[2]
    model.save(tmp_path / "saved")
    opened = minip2p.load(tmp_path / "saved")
    assert opened.scheduler == model.scheduler and opened.default_guidance == 8.5
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved", **WITHOUT_CHECKER)
    theirs.set_progress_bar_config(disable=True)
    assert isinstance(theirs.scheduler, diffusers.LCMScheduler)
    expected = with_diffusers(theirs, guidance_scale=8.5)
    check("saved, float32", opened.generate(PROMPT, seed=1, steps=STEPS).latents[-1:], expected, 1e-3)


def test_an_odd_configuration_is_one_line(lcm, tmp_path):
    folder = copy_folder(lcm[1], tmp_path / "odd")
    update_json(folder / "unet/config.json", time_cond_proj_dim=31)
    with pytest.raises(ValueError, match="unet/config.json: time_cond_proj_dim must be even and at least 4, not 31"):
        minip2p.load(folder)


# --- edits


def test_edits_share_the_fresh_noise_of_their_source(model):
    """Into the same prompt nothing changes; map space and value space agree; together they are a run and its edit."""
    run = model.generate(PROMPT, seed=1, steps=STEPS)
    same, other = model.edit(run, [PROMPT, TARGET], cross_replace=0.5)
    check("same prompt, float32", same.latents, run.latents, 1e-4)
    assert (other.latents[-1] - run.latents[-1]).abs().max() > 1e-3
    in_maps = model.edit(run, TARGET, cross_replace=0.5, explicit=True)
    check("in map space, float32", in_maps.latents, other.latents, 1e-4)
    together = model.edit(PROMPT, TARGET, seed=1, steps=STEPS, cross_replace=0.5)
    check("from the prompt, float32", together.latents, other.latents, 1e-4)
    unedited = model.edit(run, TARGET, cross_replace=0, self_replace=0)
    check("no edit, float32", unedited.latents, model.generate(TARGET, seed=1, steps=STEPS).latents, 1e-4)


def test_edits_cost_what_is_predicted_and_those_of_a_record_run_no_source(model, tmp_path):
    counter = RowCounter()
    counted = model.counting(counter)
    run = model.generate(PROMPT, seed=1, steps=STEPS)
    targets = make_targets(counted.components, run, [TARGET, "a pig on the beach"], EditOptions(cross_replace=0.5))
    run_edits(counted.components, run, targets)
    assert counter.rows == plan_batches(counted.components, run, targets).predicted_rows(run)
    recorded = model.record(PROMPT, seed=1, steps=STEPS, file=tmp_path / "run.safetensors")
    opened = counted.open(tmp_path / "run.safetensors")
    assert torch.equal(opened.latents, run.latents) and opened.conditioning.eta == 1.0
    counter.rows = 0
    assert torch.equal(counted.edit(opened, TARGET).latents, model.edit(recorded, TARGET).latents)
    assert counter.rows == STEPS


def test_a_replay_sees_the_attention_of_the_run(model):
    """Also of a run at another guidance scale, which the UNet reads."""
    seen = []

    def observing(into):
        def attend(q, k, v, site):
            into.append(q)
            return fused(q, k, v, site)

        return attend

    run = model.generate(PROMPT, seed=1, steps=2, guidance_scale=3.0, attend=observing(seen))
    replayed = []
    replace(run, attend=fused).replay(lambda attend: observing(replayed))
    assert len(seen) == len(replayed) and all(torch.equal(a, b) for a, b in zip(seen, replayed, strict=True))


@pytest.mark.parametrize("method", ["direct", "edit-friendly", "virtual"])
def test_photographs_are_inverted_and_edited(model, method):
    """An edit into the same prompt at the source's guidance is the source."""
    options = {"source_guidance_scale": 8.5} if method == "virtual" else {}
    run = model.invert(smooth_picture(), PROMPT, steps=STEPS, method=method, **options)
    same, other = model.edit(run, [PROMPT, TARGET], cross_replace=0.5)
    assert (other.latents[-1] - run.latents[-1]).abs().max() > 1e-3
    if method != "direct":
        check(f"{method}, same prompt, float32", same.latents[:-1], run.latents[:-1], 1e-3)
    if method == "virtual":  # at the last step it corrects the picture too
        check("virtual, same prompt, the picture, float32", same.latents[-1], run.latents[-1], 1e-3)
    assert (run.conditioning.variance_noise is None) == (method == "direct")


@pytest.mark.parametrize("method", ["negative-prompt", "proximal", "null-text"])
def test_methods_that_change_unconditional_rows_are_refused(model, method):
    with pytest.raises(ValueError, match=f"{method} inversion changes the unconditional rows, and this model"):
        model.invert(smooth_picture(), PROMPT, steps=2, method=method)


def test_a_run_takes_four_steps_where_nothing_is_said(model):
    assert model.generate(PROMPT).steps == 4
    assert model.invert(smooth_picture(), PROMPT, method="virtual").steps == 4


def test_what_the_model_cannot_take_is_one_line(model):
    with pytest.raises(ValueError, match="guidance_scale must be at least 1 for this model, which reads it"):
        model.generate(PROMPT, guidance_scale=0, steps=2)
    for method in ("virtual", "edit-friendly"):
        with pytest.raises(ValueError, match="source_guidance_scale must be at least 1 for this model, which reads it"):
            model.invert(smooth_picture(), PROMPT, method=method, source_guidance_scale=0.5)
    with pytest.raises(ValueError, match="steps must lie between 1 and 50 for this model"):
        model.prepare(PROMPT, RunSettings(steps=51))
    with pytest.raises(ValueError, match="this UNet needs `guidance_scale`"):
        model.unet(torch.zeros(1, 4, 8, 8), 1, model.text(PROMPT).tokens)
