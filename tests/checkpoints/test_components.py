"""The components of a model: sizes, the VAE at both ends, counting, and how a model is told from another."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import minip2p
from minip2p.checkpoints.components import Components, RowCounter
from minip2p.checkpoints.diagnosis import non_finite_error
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.sched import DDIMScheduler

PROMPT = "a cat and a house on grass"


@pytest.fixture
def fresh():
    """A model of the test's own, which it may change."""
    return minip2p.load()


def without_sample_size(components):
    """The same components, whose UNet does not say what size it was trained at."""
    unet = torch.nn.Module()
    unet.config, unet.stride = replace(components.unet.config, sample_size=None), components.unet.stride
    return replace(components, unet=unet)


def test_the_sizes_of_a_text_to_image_model(model):
    components = model.components
    assert components.extra_channels == 0 and components.device == torch.device("cpu")
    assert components.dtype == torch.float32
    assert components.latent_size(None) == (16, 16) and components.latent_size((40, 72)) == (5, 9)
    assert components.latent_size([40, 72]) == (5, 9)


@pytest.mark.parametrize("size", [(130, 128), (128, 16), (128,), (64, 64, 64), 128, (128.0, 128.0), "88", (-64, 64)])
def test_sizes_that_the_networks_cannot_process_are_refused(model, size):
    with pytest.raises(ValueError, match="size must be two multiples of 8 of at least 32 pixels, not") as error:
        model.components.latent_size(size)
    assert "\n" not in str(error.value)


def test_a_mistyped_size_does_not_take_all_memory(model):
    with pytest.raises(ValueError, match="a picture of 65536 x 65536 pixels is too large: 67108864 are the most"):
        model.components.latent_size((65536, 65536))


def test_a_model_without_a_sample_size_needs_a_size(model):
    components = without_sample_size(model.components)
    assert components.latent_size((64, 72)) == (8, 9)
    with pytest.raises(ValueError, match="this model has no sample size of its own: give a size"):
        components.latent_size(None)


def test_a_single_sample_size_is_a_square_and_a_pair_is_rows_and_columns(model):
    for sample_size, expected in ((12, (12, 12)), ((12, 20), (12, 20))):
        components = without_sample_size(model.components)
        components.unet.config = replace(components.unet.config, sample_size=sample_size)
        assert components.latent_size(None) == expected


def test_encoding_and_decoding_by_hand(model):
    picture = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.components.encode(picture)
    assert torch.equal(latents, model.vae.scale(model.vae.encode(picture)[0]))
    decoded = model.components.decode(latents)
    assert torch.equal(decoded, model.vae.decode(model.vae.unscale(latents)).clamp(-1, 1))
    assert latents.shape == (1, 4, 8, 9) and decoded.shape == picture.shape
    assert model.components.decode(100 * latents).abs().max() <= 1


def test_latents_are_float32_in_16_bits():
    components = minip2p.load(dtype=torch.bfloat16).components
    latents = components.encode(torch.zeros(1, 3, 64, 64))
    assert latents.dtype == torch.float32 and components.decode(latents).dtype == torch.float32


def test_a_counter_counts_the_rows_of_its_components_only(model):
    counter = RowCounter()
    counted = model.counting(counter)
    assert counted.components.counter is counter and model.components.counter is None
    model.generate(PROMPT, steps=1, size=(64, 64))
    assert counter.rows == 0
    counted.generate(PROMPT, steps=1, size=(64, 64))
    assert counter.rows == 2


def test_components_share_networks_whatever_counts_their_rows(model, fresh):
    components = model.components
    counted = replace(components, counter=RowCounter(), origin=CheckpointOrigin())
    assert components.shares_networks(counted) and counted.shares_networks(components)
    assert counted.fingerprint == components.fingerprint
    for name in ("unet", "vae", "text", "scheduler"):
        assert not components.shares_networks(replace(components, **{name: getattr(fresh, name)})), name


@pytest.mark.parametrize("change", ["unet", "vae", "text", "schedule", "zeros"])
def test_the_fingerprint_tells_models_apart(model, fresh, change):
    components = fresh.components
    assert components.fingerprint == model.components.fingerprint
    components = replace(components)  # the fingerprint is computed once for each value
    if change == "schedule":
        config = replace(components.scheduler.config, beta_end=0.013)
        components = replace(components, scheduler=DDIMScheduler(config))
    elif change == "zeros":
        components = replace(components, text=replace(components.text, zero_empty_prompt=True))
    else:
        network = {"unet": fresh.unet, "vae": fresh.vae, "text": fresh.text.encoders["text_encoder"]}[change]
        next(iter(network.parameters())).data += 1
    assert components.fingerprint != model.components.fingerprint


def test_damaged_weights_are_named(fresh):
    unet = fresh.unet.conv_in.weight.data
    first = unet[0, 0, 0, 0].item()
    unet[0, 0, 0, 0] = torch.nan
    name = r"unet/diffusion_pytorch_model.safetensors: conv_in.weight is not finite: the weights are damaged"
    with pytest.raises(ValueError, match=name):
        fresh.generate(PROMPT, steps=1)
    unet[0, 0, 0, 0] = first
    run = fresh.generate(PROMPT, steps=1)
    fresh.vae.decoder.conv_in.weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"vae/.*.safetensors: decoder.conv_in.weight is not finite"):
        _ = run.image
    fresh.vae.encoder.conv_in.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"vae/.*.safetensors: encoder.conv_in.weight is not finite"):
        fresh.components.encode(torch.zeros(1, 3, 64, 64))


def test_results_that_overflow_with_sound_weights_say_what_may_help(model):
    with pytest.raises(ValueError, match="the decoded picture is not finite; try --dtype float32 or less guidance"):
        model.components.decode(torch.full((1, 4, 8, 8), torch.inf))
    error = non_finite_error({"unet": torch.nn.Linear(1, 1)}, CheckpointOrigin(), "the sum is not finite")
    assert str(error) == "the sum is not finite; try --dtype float32 or less guidance"


def test_a_damaged_network_without_a_file_is_named_by_its_folder():
    network = torch.nn.Linear(1, 1)
    network.bias.data[0] = torch.nan
    error = non_finite_error({"vae": network}, CheckpointOrigin({"unet": Path("x")}), "…")
    assert str(error) == "vae: bias is not finite: the weights are damaged"


def test_components_are_a_value(model):
    assert isinstance(model.components, Components)
    assert model.components.networks.keys() == {"unet", "vae", "text_encoder"}
    with pytest.raises(AttributeError):
        model.components.unet = None
