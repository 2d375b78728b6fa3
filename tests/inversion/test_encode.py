"""Encoding photographs, and refining their latents by the decoder."""

import pytest
import torch
from paths import DATA

import minip2p
from minip2p.inversion.encode import encode_photo, refine_latents
from minip2p.io.images import fit_image, read_image
from minip2p.metrics.image import psnr

RENDER = DATA / "renders" / "00.png"
UPDATES = 6


@pytest.fixture(scope="module")
def photo(device):
    return fit_image(read_image(RENDER), (64, 64))[None].to(device)


@pytest.fixture(scope="module")
def encoded(model, photo):
    return encode_photo(model.components, photo)


@pytest.fixture(scope="module")
def refined(model, photo):
    return encode_photo(model.components, photo, UPDATES)


def test_without_updates_the_latents_are_the_encoders(model, photo, encoded):
    assert torch.equal(encoded, model.vae.scale(model.vae.encode(photo)[0])) and encoded.dtype == torch.float32


def test_refined_latents_decode_nearer_to_the_photograph(model, photo, encoded, refined):
    gain = psnr(photo[0], model.components.decode(refined)[0]) - psnr(photo[0], model.components.decode(encoded)[0])
    print(f"{UPDATES} updates: {gain:.2f} dB nearer")
    assert gain > 1.0
    assert not refined.requires_grad and refined.shape == encoded.shape


def test_invert_refines_the_latents(model, refined):
    run = model.invert(RENDER, "a street", steps=1, size=(64, 64), vae_refine_steps=UPDATES)
    assert torch.equal(run.latents[-1:], refined.cpu())


def test_refining_works_within_inference_mode(model, photo, encoded):
    expected = refine_latents(model.components, encoded, photo, 2)
    with torch.inference_mode():
        assert torch.equal(encode_photo(model.components, photo.clone(), 2), expected)


def test_refining_never_makes_it_worse(model, photo, encoded):
    assert torch.equal(refine_latents(model.components, encoded, photo, 3, learning_rate=100.0), encoded)


def test_refining_learns_in_bfloat16(photo, device):
    components = minip2p.load(dtype=torch.bfloat16, device=device).components
    plain, refined = encode_photo(components, photo), encode_photo(components, photo, UPDATES)
    errors = [float((components.decode(z) - photo).square().mean()) for z in (plain, refined)]
    assert refined.dtype == torch.float32 and errors[1] < errors[0]


@pytest.mark.parametrize("updates", [-1, 2.5, "x", None])
def test_the_number_of_updates_is_a_whole_number(model, photo, updates):
    with pytest.raises(ValueError, match="vae_refine_steps is a whole number of updates from 0 on, not"):
        encode_photo(model.components, photo, updates)
