"""The VAE against diffusers', both ways, and its scaling."""

import pytest
import torch
from diffusers import AutoencoderKL
from parity import SD15_VAE, check, norms, on_meta, share_weights

from minip2p.config import VAEConfig
from minip2p.layers import Downsample, Upsample
from minip2p.vae import VAE
from minip2p.vae.blocks import VAEAttention

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


def pair(given):
    """Our VAE and diffusers', of the same weights. Ours reads the configuration that diffusers says it has."""
    theirs = on_meta(AutoencoderKL, **given)
    ours = on_meta(VAE, VAEConfig.from_dict(dict(theirs.config)))
    share_weights(ours, theirs)
    return ours, theirs


@torch.no_grad()
def check_parity(what, ours, theirs, height, width, *, within):
    g = torch.Generator().manual_seed(0)
    pictures = torch.rand(1, 3, ours.stride * height, ours.stride * width, generator=g) * 2 - 1
    z = torch.randn(1, ours.config.latent_channels, height, width, generator=g)
    mean, std = ours.encode(pictures)
    expected = theirs.encode(pictures).latent_dist
    check(f"{what}, mean at {height}x{width}", mean, expected.mean, within)
    check(f"{what}, std at {height}x{width}", std, expected.std, within)
    check(f"{what}, decoded at {height}x{width}", ours.decode(z), theirs.decode(z).sample, within)


@pytest.mark.parametrize("name", SMALL)
def test_small_vaes_are_diffusers(name):
    check_parity(name, *pair(SMALL[name]), 5, 8, within=1e-5)


def test_the_full_sd15_vae_is_diffusers():
    ours, theirs = pair(SD15_VAE)
    for height, width in ((8, 8), (8, 12)):
        check_parity("SD 1.5, full size", ours, theirs, height, width, within=1e-4)


def test_the_embedded_vae_is_diffusers(model):
    theirs = AutoencoderKL.from_pretrained(model.text.folder / "vae")
    for height, width in ((16, 16), (16, 20), (11, 18)):
        check_parity("embedded", model.vae, theirs, height, width, within=1e-5)


def test_sd15_has_248_tensors_with_83653863_parameters():
    ours = on_meta(VAE, VAEConfig.from_dict(SD15_VAE))
    theirs = on_meta(AutoencoderKL, **SD15_VAE)
    shapes = {name: p.shape for name, p in ours.state_dict().items()}
    assert shapes == {name: p.shape for name, p in theirs.state_dict().items()}
    assert len(shapes) == 248 and sum(shape.numel() for shape in shapes.values()) == 83_653_863
    assert norms(ours) == norms(theirs) and ours.stride == 8


def test_latents_are_scaled_by_z_minus_shift_times_scale():
    vae = on_meta(VAE, VAEConfig(scaling_factor=0.5, shift_factor=0.1))
    assert vae.scale(torch.tensor(2.1)).item() == pytest.approx(1.0)
    assert vae.unscale(torch.tensor(1.0)).item() == pytest.approx(2.1)
    assert on_meta(VAE, VAEConfig()).scale(torch.tensor(2.0)).item() == pytest.approx(2 * 0.18215)


@torch.no_grad()
def test_std_is_exp_of_half_the_clamped_log_variance(model):
    vae, _ = pair(TINY)
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.copy_(torch.tensor([1.0, 2, 3, 4, -99, 0, 2, 99]))
    mean, std = vae.encode(torch.zeros(1, 3, 4, 4))
    assert mean[0, :, 0, 0].tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(std[0, :, 1, 1], torch.tensor([-15.0, 0, 1, 10]).exp())


def test_downsampling_pads_the_unet_all_around_and_the_vae_right_and_below():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    for padding, corner in ((1, 0), (0, 5)):  # the pixel under the kernel's middle at the first place
        layer = Downsample(1, padding)
        with torch.no_grad():
            layer.conv.weight.zero_()[0, 0, 1, 1] = 1
            layer.conv.bias.zero_()
            assert layer(x).tolist() == [[[[corner, corner + 2], [corner + 8, corner + 10]]]]


@torch.no_grad()
def test_upsampling_repeats_pixels_then_convolves():
    layer = Upsample(1)
    layer.conv.weight.zero_()[0, 0, 1, 1] = 2
    layer.conv.bias.fill_(1)
    assert layer(torch.tensor([[[[1.0, 2]]]])).tolist() == [[[[3, 3, 5, 5]] * 2]]
    assert layer(torch.tensor([[[[1.0, 2]]]]), (1, 3)).tolist() == [[[[3, 3, 5]]]]


@torch.no_grad()
@pytest.mark.parametrize("channels, size", [(1, (1, 1)), (3, (4, 5)), (32, (7, 2))])
def test_upsampling_and_convolving_at_once_is_the_same_as_one_after_the_other(channels, size):
    """Nearest upsampling, then W, is a transposed convolution with W ∗ 1₂ₓ₂. Tolerance 1e-12, float64."""
    layer, x = Upsample(channels).double(), torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(layer.upsample2x_conv(x), layer(x, (2 * size[0], 2 * size[1])), rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_vaes_attention_is_softmax_over_all_pixels_with_one_head():
    layer = on_meta(VAEAttention, 4, 2)
    share_weights(layer)
    x = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    tokens = layer.group_norm(x)[0].reshape(4, 6).T
    q, k, v = layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens)
    rows = [sum(w * value for w, value in zip(((k @ query) / 2).softmax(0), v, strict=True)) for query in q]
    expected = x + layer.to_out(torch.stack(rows)).T.reshape(1, 4, 2, 3)
    torch.testing.assert_close(layer(x), expected)


def test_what_the_vae_cannot_be_is_one_clear_line():
    for wrong, says in (
        (dict(down_block_types=("AttnDownEncoderBlock2D",) * 2), "must be one DownEncoderBlock2D"),
        (dict(up_block_types=("UpDecoderBlock2D",) * 3), "must be one UpDecoderBlock2D"),
        (dict(mid_block_add_attention=False), "only True is"),
        (dict(latents_mean=[0.1, 0.2, 0.3, 0.4]), "latents_mean = .* is not a field that minip2p knows"),
    ):
        with pytest.raises(ValueError, match=says):
            VAEConfig.from_dict(TINY | wrong)
