"""What a run is conditioned on: unconditional embeddings, noise and images, and photographs as input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from paths import DATA
from PIL import Image
from runs import same_latents

from minip2p.sampling.conditioning import (
    Conditioning,
    ImageConditioning,
    inpainting_conditioning,
    instruct_pix2pix_conditioning,
    load_photo,
)
from minip2p.text.encoder import TextEmbedding

SOURCE, TARGET, STEPS = "a cat and a house on grass", "a dog and a house on grass", 3
RENDER = DATA / "renders" / "00.png"


# Conditioning


def test_a_run_without_conditioning_is_plain_ddim():
    conditioning, negative = Conditioning(), TextEmbedding(torch.randn(1, 3, 2))
    assert conditioning.uncond_at(4, negative) is negative and conditioning.noise_at(4) is None
    assert conditioning.without_image_guidance is None
    assert (conditioning.skip_steps, conditioning.proximal_quantile) == (0, 0.0)


def test_each_step_has_its_own_embedding_and_noise():
    embeddings = TextEmbedding(torch.randn(4, 3, 2), torch.randn(4, 5))
    negative = TextEmbedding(torch.zeros(1, 3, 2, dtype=torch.float16), torch.zeros(1, 5, dtype=torch.float16))
    noise = torch.randn(4, 1, 2, 2)
    conditioning = Conditioning(embeddings, noise)
    embedding = conditioning.uncond_at(2, negative)
    assert torch.equal(embedding.tokens, embeddings.tokens[2:3].half())  # in the dtype that the UNet computes in
    assert torch.equal(embedding.pooled, embeddings.pooled[2:3].half())
    assert torch.equal(conditioning.noise_at(3), noise[3:])


@pytest.mark.parametrize(
    "options, guided, unconditional",
    [
        ({}, range(10), range(10)),
        ({"guidance_interval": (0.2, 0.7)}, range(2, 7), range(2, 7)),
        ({"uncond_every": 3}, range(10), [0, 3, 6, 9]),
        ({"uncond_every": 3, "guidance_interval": (0.2, 0.7)}, range(2, 7), [2, 5]),
        ({"uncond_every": 2, "guidance_interval": (0.2, 0.7), "skip_steps": 3}, range(3, 7), [3, 5]),
    ],
)
def test_which_of_ten_steps_are_guided_and_which_run_unconditional_rows(options, guided, unconditional):
    conditioning = Conditioning(**options)
    assert list(conditioning.guided_steps(10)) == list(guided)
    assert [i for i in range(10) if conditioning.runs_unconditional(i, 10)] == list(unconditional)
    assert [conditioning.executed_scale(i, 10, 4.0) for i in range(10)] == [
        4.0 if i in unconditional else 1.0 for i in range(10)
    ]
    assert conditioning.is_approximate == ("guidance_interval" in options or "uncond_every" in options)
    assert conditioning.is_plain == (not options)


def test_image_channels_as_rows():
    channels = torch.randn(1, 2, 3, 3)
    image = ImageConditioning(channels, 1.5)
    rows = image.rows(5, empty=2)
    assert rows.shape == (5, 2, 3, 3) and not rows[:2].any() and all(torch.equal(row, channels[0]) for row in rows[2:])
    assert torch.equal(image.rows(2), channels.repeat(2, 1, 1, 1))
    alone = Conditioning(image=image).without_image_guidance
    assert alone.channels is channels and alone.image_guidance_scale is None


def test_edits_take_the_unconditional_embedding_of_each_step(model):
    run = model.generate(SOURCE, seed=5, steps=STEPS, size=(64, 72))
    night, day = model.text("night"), model.text("")

    def edit(embeddings):
        return model.edit(replace(run, conditioning=Conditioning(TextEmbedding.cat(embeddings))), TARGET)

    plain = model.edit(run, TARGET)
    as_negative = model.edit(replace(run, negative_prompt="night"), TARGET)
    assert same_latents(as_negative, edit([night] * STEPS)) and not same_latents(as_negative, plain)
    last = edit([day] * (STEPS - 1) + [night])
    assert torch.equal(last.latents[:-1], plain.latents[:-1]) and not same_latents(last, plain)


# Photographs


def test_a_photograph_is_read_from_a_file_an_image_or_a_tensor(model):
    """Also through `invert`, where it is then encoded and decoded by the VAE alone."""
    image = Image.open(RENDER)
    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 127.5 - 1
    for picture in (RENDER, str(RENDER), image, pixels):
        assert torch.equal(load_photo(model.components, picture, None, "crop"), pixels)
    runs = [model.invert(picture, SOURCE, steps=1) for picture in (RENDER, image, pixels)]
    assert same_latents(runs[0], runs[1]) and same_latents(runs[0], runs[2])
    decoded = model.vae.decode(model.vae.encode(pixels[None].to(model.device))[0])[0]
    torch.testing.assert_close(runs[0].picture, decoded.clamp(-1, 1).cpu(), rtol=0, atol=1e-5)


def test_a_photograph_is_scaled_to_a_size(model):
    assert load_photo(model.components, RENDER, (64, 72), "crop").shape == (3, 64, 72)
    crop, stretch = (load_photo(model.components, RENDER, (64, 128), fit) for fit in ("crop", "stretch"))
    assert not torch.equal(crop, stretch)
    assert model.invert(RENDER, SOURCE, steps=2, size=(64, 72)).latents.shape == (3, 4, 8, 9)


def test_a_photograph_is_turned_upright_from_a_file_and_as_an_image(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "phone.png"
    Image.open(RENDER).convert("RGB").save(file, exif=exif)
    upright = load_photo(model.components, file, None, "crop")
    assert torch.equal(load_photo(model.components, Image.open(file), None, "crop"), upright)
    original = load_photo(model.components, RENDER, None, "crop")
    assert not torch.equal(original, upright) and torch.equal(original.rot90(-1, (1, 2)), upright)
    (tmp_path / "cut.png").write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(ValueError, match="the image cannot be read"):
        load_photo(model.components, Image.open(tmp_path / "cut.png"), None, "crop")


@pytest.mark.parametrize(
    "picture, options, message",
    [
        (torch.zeros(1, 3, 64, 64), {}, "an image tensor is 3 H W in"),
        (torch.zeros(1, 64, 64), {}, "an image tensor is 3 H W in"),
        (torch.full((3, 64, 64), 2.0), {}, "an image tensor is 3 H W in"),
        (torch.full((3, 64, 64), torch.nan), {}, "3 H W in"),
        (torch.zeros(3, 0, 0), {}, "an image tensor is 3 H W in"),
        (torch.zeros(3, 64, 64).bool(), {}, "floating-point numbers"),
        (torch.zeros(3, 64, 64), dict(size=(64, 64)), "leave size out"),
        (torch.zeros(3, 60, 64), {}, "multiples of 8"),
        (RENDER, dict(size=(60, 60)), "multiples of 8"),
        (RENDER, dict(fit="squeeze"), "crop"),
        (b"png", {}, "an image is a file"),
        (Image.new("RGB", (0, 0)), {}, "has no pixels"),
    ],
)
def test_photographs_that_are_refused(model, picture, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load_photo(model.components, picture, **{"size": None, "fit": "crop"} | options)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        model.invert(picture, SOURCE, steps=1, **options)


def test_a_missing_photograph_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.png: no such file"):
        load_photo(model.components, tmp_path / "none.png", None, "crop")


def test_a_text_to_image_model_neither_follows_instructions_nor_inpaints(model):
    picture = torch.zeros(3, 64, 64)
    with pytest.raises(ValueError, match="this model follows no instructions: its UNet reads 0 channels besides"):
        instruct_pix2pix_conditioning(model.components, picture, 1.5)
    with pytest.raises(ValueError, match="this model does not paint into a picture: its UNet reads 0 channels besides"):
        inpainting_conditioning(model.components, picture, torch.ones(64, 64), "crop")
