"""The VAE: parity with diffusers in both directions, its scaling, and the configurations that it refuses."""

import pytest
import torch
from diffusers import AutoencoderKL
from parity import SD15_VAE, check, norms, on_meta, share_weights

from minip2p.config import VAEConfig
from minip2p.io.files import shipped_weights
from minip2p.vae import VAE
from minip2p.vae.model import decode_tiles

TINY = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    norm_num_groups=4,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
SMALL = {
    "as SD 1": TINY,
    "16 channels, shifted, no 1x1 convolutions": TINY
    | dict(
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    ),
    "three levels, two layers": TINY
    | dict(
        block_out_channels=(4, 8, 12),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ),
    "one level": TINY
    | dict(block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",)),
}
# The published configuration, a sixteenth as wide. tests/test_full_size.py has it at full size.
NARROW = SD15_VAE | dict(block_out_channels=[8, 16, 32, 32], norm_num_groups=8)


def pair_with_diffusers(config):
    """Our VAE and diffusers' with the same weights. Ours reads the configuration that diffusers reports."""
    theirs = on_meta(AutoencoderKL, **config)
    actual = on_meta(VAE, VAEConfig.from_dict(dict(theirs.config)))
    share_weights(actual, theirs)
    return actual, theirs


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(17, 16), (40, 25), (13, 70), (64, 12)])
def test_tiles_are_those_of_diffusers(height, width):
    """Tiles of 16 latent pixels, float32, within 1e-4 standard deviations; measured 1e-5."""
    actual, theirs = pair_with_diffusers(SMALL["three levels, two layers"])
    theirs.enable_tiling()
    theirs.tile_latent_min_size, theirs.tile_sample_min_size = 16, 16 * actual.stride
    z = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    expected = theirs.decode(z).sample
    assert expected.shape[2:] == (height * actual.stride, width * actual.stride)
    check(f"tiles at {height}x{width}", decode_tiles(actual.decode_at_once, z, 16), expected, 1e-4)


@torch.no_grad()
def test_pictures_above_1024_px_are_decoded_in_tiles():
    """Above 1024² pixels, whatever the sides: SDXL's own sizes, such as 1536 × 640, are decoded at once."""
    actual, _ = pair_with_diffusers(TINY)
    for height, width, is_tiled in ((320, 768, False), (512, 512, False), (1, 1024, False), (512, 513, True)):
        z = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
        sizes = []
        actual.decoder.forward = lambda z, sizes=sizes: sizes.append(tuple(z.shape[2:])) or z.repeat(1, 1, 2, 2)[:, :3]
        assert actual.decode(z).shape == (1, 3, 2 * height, 2 * width)
        expected = [(512, 512), (512, 129), (128, 512), (128, 129)] if is_tiled else [(height, width)]
        assert sizes == expected


@torch.no_grad()
def check_parity(what, actual, theirs, height, width, *, tolerance):
    g = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, actual.stride * height, actual.stride * width, generator=g) * 2 - 1
    z = torch.randn(1, actual.config.latent_channels, height, width, generator=g)
    mean, std = actual.encode(images)
    expected = theirs.encode(images).latent_dist
    check(f"{what}, mean at {height}x{width}", mean, expected.mean, tolerance)
    check(f"{what}, std at {height}x{width}", std, expected.std, tolerance)
    check(f"{what}, decoded at {height}x{width}", actual.decode(z), theirs.decode(z).sample, tolerance)


@pytest.mark.parametrize("name", SMALL)
def test_small_vaes_match_diffusers(name):
    check_parity(name, *pair_with_diffusers(SMALL[name]), 5, 8, tolerance=1e-5)


def test_the_published_configuration_matches_diffusers_at_a_sixteenth_of_its_width():
    actual, theirs = pair_with_diffusers(NARROW)
    for height, width in ((8, 8), (8, 12)):
        check_parity("SD 1.5, narrow", actual, theirs, height, width, tolerance=1e-4)


@pytest.mark.full
def test_the_full_sd15_vae_matches_diffusers():
    actual, theirs = pair_with_diffusers(SD15_VAE)
    for height, width in ((8, 8), (8, 12)):
        check_parity("SD 1.5, full size", actual, theirs, height, width, tolerance=1e-4)


def test_the_shipped_vae_matches_diffusers(cpu_model):
    theirs = AutoencoderKL.from_pretrained(shipped_weights("tiny") / "vae")
    for height, width in ((16, 16), (16, 20), (11, 18)):
        check_parity("shipped", cpu_model.vae, theirs, height, width, tolerance=2e-5)


def test_the_sd15_vae_has_248_tensors_with_83653863_parameters():
    actual = on_meta(VAE, VAEConfig.from_dict(SD15_VAE))
    theirs = on_meta(AutoencoderKL, **SD15_VAE)
    shapes = {name: p.shape for name, p in actual.state_dict().items()}
    assert shapes == {name: p.shape for name, p in theirs.state_dict().items()}
    assert len(shapes) == 248 and sum(shape.numel() for shape in shapes.values()) == 83_653_863
    assert norms(actual) == norms(theirs) and actual.stride == 8


def test_scaled_latents_are_z_minus_shift_times_scale():
    vae = on_meta(VAE, VAEConfig(scaling_factor=0.5, shift_factor=0.1))
    assert vae.scale(torch.tensor(2.1)).item() == pytest.approx(1.0)
    assert vae.unscale(torch.tensor(1.0)).item() == pytest.approx(2.1)
    assert on_meta(VAE, VAEConfig()).scale(torch.tensor(2.0)).item() == pytest.approx(2 * 0.18215)


@torch.no_grad()
def test_std_is_exp_of_half_the_clamped_log_variance():
    vae, _ = pair_with_diffusers(TINY)
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.copy_(torch.tensor([1.0, 2, 3, 4, -99, 0, 2, 99]))
    mean, std = vae.encode(torch.zeros(1, 3, 4, 4))
    assert mean[0, :, 0, 0].tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(std[0, :, 1, 1], torch.tensor([-15.0, 0, 1, 10]).exp())


def test_unsupported_configurations_are_one_clear_line():
    for wrong, message in (
        (dict(down_block_types=("AttnDownEncoderBlock2D",) * 2), "must be one DownEncoderBlock2D"),
        (dict(up_block_types=("UpDecoderBlock2D",) * 3), "must be one UpDecoderBlock2D"),
        (dict(mid_block_add_attention=False), "only True is"),
        (dict(latents_mean=[0.1, 0.2, 0.3, 0.4]), "latents_mean = .* is not a field that minip2p knows"),
    ):
        with pytest.raises(ValueError, match=message):
            VAEConfig.from_dict(TINY | wrong)
