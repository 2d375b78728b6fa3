"""Every supported family, as a small model with random weights, generates what its pipeline in diffusers generates,
and takes Prompt-to-Prompt."""

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from families import (
    FAMILIES,
    IMAGE_FAMILIES,
    OFFICIAL,
    PROMPT,
    TEXT_FAMILIES,
    readme_table,
    smooth_picture,
)
from parity import OFFICIAL_UNETS, check
from paths import ROOT
from PIL import Image

import minip2p
from minip2p.baselines import MasaCtrl
from minip2p.checkpoints.components import RowCounter
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.editing import run_edits
from minip2p.p2p.options import EditOptions
from minip2p.p2p.targets import make_targets
from minip2p.sampling.conditioning import ImageConditioning, inpainting_conditioning
from minip2p.sampling.guidance import guided_noise, unet_rows
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunSettings

STEPS = 20
TARGET = "a dog on the beach"


@pytest.fixture(scope="module")
def load(family):
    """A function: the name of a family -> our model of it, loaded once. Models do not change."""
    return functools.cache(lambda name: minip2p.load(family(name)[1]))


def generate_with_diffusers(pipe, run, steps, **options):
    """The last latents of diffusers' pipeline, from the noise of a run."""
    noise = run.latents[:1].clone()
    with torch.no_grad():
        return pipe(latents=noise, num_inference_steps=steps, output_type="latent", **options).images


def test_the_readmes_table_is_of_the_families_that_are_tested(family, load):
    """Its rows, and their pipelines and default guidances. The official tensors are those of test_key_maps.py and
    test_full_size.py."""
    assert readme_table() in (ROOT / "README.md").read_text(encoding="utf-8"), readme_table()
    assert set(OFFICIAL.values()) == OFFICIAL_UNETS.keys()
    for name in FAMILIES:
        (row,) = [line for line in readme_table().splitlines() if line.startswith(f"| {name} |")]
        assert f"| {load(name).default_guidance:g} | `{type(family(name)[0]).__name__}` |" in row


def test_each_family_has_its_default_guidance(load):
    guidance = {name: load(name).default_guidance for name in FAMILIES}
    assert guidance == {
        "SD 1": 7.5,
        "SD 2 base": 7.5,
        "SD 2, v": 7.5,
        "SDXL": 5.0,
        "InstructPix2Pix": 7.5,
        "inpainting": 7.5,
        "SD Turbo": 1.0,
        "SDXL Turbo": 1.0,
    }


# Text to image


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_the_latents_after_20_steps_are_those_of_the_pipeline(family, load, name):
    pipe = family(name)[0]
    model = load(name)
    run = model.generate(PROMPT, seed=1, steps=STEPS, negative_prompt="" if "Turbo" in name else "fog")
    options = dict(negative_prompt=run.negative_prompt or None, guidance_scale=model.default_guidance)
    expected = generate_with_diffusers(pipe, run, STEPS, prompt=PROMPT, **options)
    check(f"{name}, float32", run.latents[-1:], expected, 1e-3)  # 6e-6


def test_sdxl_is_told_the_size_of_the_picture(family, load):
    """Rows and columns, in this order."""
    pipe = family("SDXL")[0]
    run = load("SDXL").generate(PROMPT, seed=2, steps=5, size=(32, 64), negative_prompt="fog")
    expected = generate_with_diffusers(pipe, run, 5, prompt=PROMPT, height=32, width=64, negative_prompt="fog")
    check("SDXL, 32 x 64, float32", run.latents[-1:], expected, 1e-3)


def test_sdxl_without_a_negative_prompt_has_zeros_as_diffusers_has(family, load):
    pipe = family("SDXL")[0]
    run = load("SDXL").generate(PROMPT, seed=2, steps=5)
    expected = generate_with_diffusers(pipe, run, 5, prompt=PROMPT)
    check("SDXL without a negative prompt, float32", run.latents[-1:], expected, 1e-3)


def test_a_distilled_model_at_guidance_0_runs_its_conditional_rows_alone(load):
    """The model cards recommend 0, by which diffusers means no guidance: here that is 1."""
    model, counter = load("SD Turbo"), RowCounter()
    run = model.counting(counter).generate(PROMPT, steps=2, guidance_scale=0)
    assert counter.rows == 2 and run.guidance_scale == 1.0
    assert torch.equal(run.latents, model.generate(PROMPT, steps=2, guidance_scale=1).latents)


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_prompt_to_prompt(load, name):
    """A word is swapped; an edit into the same prompt changes nothing; map space and value space agree."""
    model = load(name)
    run = model.generate(PROMPT, seed=1, steps=4)
    swap = {"cross_replace": 1.0, "self_replace": 0.5}
    edited = model.edit(run, TARGET, **swap)
    unedited = model.edit(run, TARGET, cross_replace=0, self_replace=0)
    in_map_space = model.edit(run, TARGET, explicit=True, **swap)
    assert (edited.latents[-1] - unedited.latents[-1]).abs().max() > 1e-3
    check(f"{name}, in map space, float32", in_map_space.latents, edited.latents, 1e-4)
    check(f"{name}, same prompt, float32", model.edit(run, PROMPT, **swap).latents, run.latents, 1e-4)


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_photograph_is_inverted(load, name):
    model, photo = load(name), torch.rand(3, 32, 32) * 2 - 1
    run = model.invert(photo, PROMPT, steps=4)
    assert run.maps(["cat"]).shape == (1, 32, 32) and run.latents.isfinite().all()
    run = model.invert(photo, PROMPT, steps=2, method="null-text", num_inner_steps=1)
    assert run.conditioning.uncond_embeddings.tokens.shape == (2, *model.text("").tokens.shape[1:])


def test_inversions_of_sdxl_begin_with_its_negative_prompt_of_zeros(load):
    """The embeddings of null-text inversion; and edit-friendly inversion, whose noise leads back to the photograph."""
    model, photo = load("SDXL"), smooth_picture()
    run = model.invert(photo, PROMPT, steps=2, method="null-text", num_inner_steps=0)
    assert not run.conditioning.uncond_embeddings.tokens.any()
    run = model.invert(photo, PROMPT, steps=4, method="edit-friendly", skip=0)
    start = model.prepare(PROMPT, RunSettings(latents=run.latents[:1], steps=4))
    sampled = sample(model.components, replace(start, conditioning=run.conditioning))
    check("SDXL, edit-friendly, float32", sampled.latents[:-1], run.latents[:-1], 1e-3)


def test_a_record_of_sdxl_is_written_and_opened(load, tmp_path):
    model = load("SDXL")
    recorded = model.record(PROMPT, seed=1, steps=3, file=tmp_path / "run.safetensors")
    opened = model.open(tmp_path / "run.safetensors")
    assert torch.equal(model.edit(recorded, TARGET).latents, model.edit(opened, TARGET).latents)


# Models that read an image


@pytest.mark.parametrize("w_text, w_image", [(7.5, 1.5), (3.0, 1.0)])
def test_instruct_pix2pix_is_its_pipeline(family, load, w_text, w_image):
    """Guidance by the image and by the text (Brooks et al. 2022, eq. 3)."""
    pipe = family("InstructPix2Pix")[0]
    picture = smooth_picture()
    options = dict(guidance_scale=w_text, image_guidance_scale=w_image, negative_prompt="fog")
    run = load("InstructPix2Pix").instruct(picture, "make it snow", seed=1, steps=STEPS, **options)
    image = (picture[None] + 1) / 2
    expected = generate_with_diffusers(pipe, run, STEPS, prompt="make it snow", image=image, **options)
    check("InstructPix2Pix, float32", run.latents[-1:], expected, 1e-3)  # 6e-6
    assert run.picture.shape == (3, 32, 32)


@pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor:FutureWarning")  # of diffusers
def test_inpainting_is_its_pipeline(family, load):
    """The pipeline samples the masked picture's latents; here they are the mean, which it is given."""
    pipe = family("inpainting")[0]
    model, picture, mask = load("inpainting"), smooth_picture(), torch.zeros(32, 32)
    mask[8:24, 4:19] = 1
    run = model.inpaint(picture, mask, PROMPT, seed=1, steps=STEPS)
    channels = run.conditioning.image.channels
    assert torch.equal(channels[0, 0], F.interpolate(mask[None, None], (16, 16), mode="nearest")[0, 0])
    grey = torch.where(mask.bool(), 0.0, picture)
    torch.testing.assert_close(channels[:, 1:], model.components.encode(grey[None]))
    expected = generate_with_diffusers(
        pipe,
        run,
        STEPS,
        prompt=PROMPT,
        image=picture[None],
        mask_image=mask[None, None],
        masked_image_latents=channels[:, 1:].clone(),
        height=32,
        width=32,
        strength=1.0,
    )
    check("inpainting, float32", run.latents[-1:], expected, 1e-3)


def test_guidance_by_image_and_text_is_its_formula_and_runs_no_row_in_vain(load):
    """On a real model: each prediction by itself, and their weighted sum, where a row whose weight is 0 is not run."""
    components, counter = load("InstructPix2Pix").components, RowCounter()
    counted = replace(components, counter=counter)
    x, channels = torch.randn(2, 4, 16, 16), torch.randn(1, 4, 16, 16)
    empty, words = components.text(""), components.text(["a cat", "a dog"])
    no_image, image = ImageConditioning(torch.zeros_like(channels)), ImageConditioning(channels)
    eps_none = guided_noise(components, x, 500, empty, words, guidance_scale=0.0, image=no_image)
    eps_image = guided_noise(components, x, 500, empty, words, guidance_scale=0.0, image=image)
    eps_all = guided_noise(components, x, 500, words, words, guidance_scale=1.0, image=image)
    for w, w_image, rows in (
        (7.5, 1.5, 6),
        (7.5, 1.0, 4),
        (1.0, 1.0, 2),
        (1.5, 1.5, 4),
        (0.0, 1.5, 4),
        (0.0, 1.0, 2),
    ):
        guiding, before = ImageConditioning(channels, w_image), counter.rows
        noise = guided_noise(counted, x, 500, empty, words, guidance_scale=w, image=guiding)
        expected = eps_none + w_image * (eps_image - eps_none) + w * (eps_all - eps_image)
        torch.testing.assert_close(noise, expected, atol=1e-4, rtol=1e-4)
        assert counter.rows - before == rows == unet_rows(2, w, image=guiding), (w, w_image)


def test_a_transparent_pixel_of_an_inpainting_mask_is_black(load, tmp_path):
    """As a file and as an image: white ink on transparent pixels."""
    components, ink = load("inpainting").components, Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    ink.paste((255, 255, 255, 255), (8, 8, 24, 24))
    ink.save(tmp_path / "ink.png")
    masks = (ink, tmp_path / "ink.png")
    a, b = (inpainting_conditioning(components, smooth_picture(), mask, "crop").channels for mask in masks)
    assert torch.equal(a, b) and a[0, 0].sum() == 64


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_prompt_to_prompt_on_models_that_read_an_image(load, tmp_path, name):
    """A run is edited into the same prompt and into another, saved with its image, recorded, and its words located."""
    model, picture = load(name), smooth_picture()
    if name == "inpainting":
        run = model.inpaint(picture, torch.ones(32, 32), PROMPT, seed=1, steps=3)
    else:
        run = model.instruct(picture, PROMPT, seed=1, steps=3)
    same, other = model.edit(run, [PROMPT, TARGET], cross_replace=1.0)
    check(f"{name}, same prompt, float32", same.latents, run.latents, 1e-4)
    assert (other.latents[-1] - run.latents[-1]).abs().max() > 1e-3
    run.save(tmp_path / "run.safetensors")
    opened = model.open(tmp_path / "run.safetensors")
    edited = model.edit(opened, TARGET, cross_replace=1.0)
    torch.testing.assert_close(edited.latents, other.latents, atol=1e-3, rtol=1e-4)
    assert run.maps(["cat"]).shape == (1, 32, 32)
    recorded = model.record(run, file=tmp_path / "record.safetensors")
    assert recorded.conditioning.image is run.conditioning.image
    masactrl = model.edit(run, TARGET, cross_replace=0, self_replace=0, attend=MasaCtrl(run))
    assert masactrl.latents.isfinite().all() and not torch.equal(masactrl.latents, run.latents)


@pytest.mark.parametrize("w_text, w_image", [(0.0, 1.5), (0.0, 1.0), (7.5, 1.5), (3.0, 3.0), (1.0, 1.0)])
def test_edits_of_an_instruction_cost_what_is_predicted(load, w_text, w_image):
    """Also at w_T = 0, where no words are read. The baselines read the image as well."""
    model, counter = load("InstructPix2Pix"), RowCounter()
    options = dict(steps=3, guidance_scale=w_text, image_guidance_scale=w_image)
    run = model.instruct(smooth_picture(), PROMPT, **options)
    components = model.counting(counter).components
    edit_options = EditOptions(cross_replace=0.5, self_replace=0.5)
    targets = make_targets(components, run, [TARGET, "a pig on the beach"], edit_options)
    run_edits(components, run, targets)
    assert counter.rows == plan_batches(components, run, targets).predicted_rows(run)
    masactrl = model.edit(run, TARGET, cross_replace=0, self_replace=0, attend=MasaCtrl(run))
    assert masactrl.latents.isfinite().all()


def test_a_model_refuses_what_it_is_not_made_for(load):
    text, instruct, inpaint = map(load, ("SD 1", *IMAGE_FAMILIES))
    picture, mask = smooth_picture(), torch.ones(32, 32)
    for call, message in (
        (lambda: text.instruct(picture, PROMPT), "this model follows no instructions: its UNet reads 0 channels"),
        (lambda: text.inpaint(picture, mask, PROMPT), "this model does not paint into a picture: its UNet reads 0"),
        (lambda: inpaint.instruct(picture, PROMPT), "this model follows no instructions: its UNet reads 5 channels"),
        (lambda: instruct.inpaint(picture, mask, PROMPT), "this model does not paint into a picture: its UNet reads 4"),
        (lambda: instruct.generate(PROMPT), "this model makes a picture from a picture: use instruct"),
        (lambda: inpaint.invert(picture, PROMPT), "this model makes a picture from a picture: use instruct"),
        (lambda: inpaint.edit(PROMPT, "a dog"), "this model makes a picture from a picture: use instruct"),
        (lambda: inpaint.inpaint(picture, mask * 0, PROMPT), "the mask is nowhere white"),
        (lambda: inpaint.inpaint(picture, mask * 2, PROMPT), "lies between 0 and 1"),
        (
            lambda: instruct.instruct(picture, PROMPT, image_guidance_scale=float("nan")),
            "image_guidance_scale must be a finite",
        ),
        (lambda: instruct.instruct(picture, PROMPT, latents=torch.zeros(1, 4, 8, 8)), "latents must be 1 4 h w"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
