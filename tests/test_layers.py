"""The convolutional layers that the UNet and the VAE share: their formulas, calculated by hand."""

import numpy as np
import pytest
import torch
from parity import on_meta, share_weights

from minip2p.layers import Downsample, ResnetBlock, Upsample


@pytest.mark.parametrize("out_channels", [4, 6])
def test_residual_block_is_shortcut_plus_two_convolutions(out_channels):
    """h = conv1(silu(norm1(x)));  h += W silu(emb);  h = conv2(silu(norm2(h)));  out = shortcut(x) + h."""
    block = on_meta(ResnetBlock, 4, out_channels, groups=2, eps=1e-2, emb_channels=3)
    share_weights(block)
    w = {name: p.double().numpy() for name, p in block.state_dict().items()}
    rng = np.random.default_rng(0)
    x, emb = rng.normal(size=(4, 3, 5)), rng.normal(size=3)

    def silu(a):
        return a / (1 + np.exp(-a))

    def norm(a, n):
        grouped = a.reshape(2, -1)
        grouped = (grouped - grouped.mean(1, keepdims=True)) / np.sqrt(grouped.var(1, keepdims=True) + 1e-2)
        return grouped.reshape(a.shape) * w[f"norm{n}.weight"][:, None, None] + w[f"norm{n}.bias"][:, None, None]

    def conv(a, name):
        kernel, bias = w[name + ".weight"], w[name + ".bias"]
        padded = np.pad(a, [(0, 0)] + [(kernel.shape[-1] // 2,) * 2] * 2)
        out = np.zeros((len(kernel), *a.shape[1:]))
        for row in range(a.shape[1]):
            for col in range(a.shape[2]):
                patch = padded[:, row : row + kernel.shape[2], col : col + kernel.shape[3]]
                out[:, row, col] = (kernel * patch).sum((1, 2, 3)) + bias
        return out

    h = conv(silu(norm(x, 1)), "conv1")
    h = h + (w["time_emb_proj.weight"] @ silu(emb) + w["time_emb_proj.bias"])[:, None, None]
    expected = conv(silu(norm(h, 2)), "conv2") + (x if out_channels == 4 else conv(x, "conv_shortcut"))
    actual = block(torch.from_numpy(x).float()[None], torch.from_numpy(emb).float()[None])[0]
    torch.testing.assert_close(actual, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding, first", [(1, 0), (0, 5)], ids=["UNet: all sides", "VAE: right and below"])
@torch.no_grad()
def test_downsampling_pads_as_the_weights_were_trained(padding, first):
    """With a kernel that copies the pixel under its middle, the output shows which pixels that is."""
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    layer = Downsample(1, padding)
    layer.conv.weight.zero_()[0, 0, 1, 1] = 1
    layer.conv.bias.zero_()
    assert layer(x).tolist() == [[[[first, first + 2], [first + 8, first + 10]]]]


@torch.no_grad()
def test_upsampling_repeats_pixels_and_then_convolves():
    layer = Upsample(1)
    layer.conv.weight.zero_()[0, 0, 1, 1] = 2
    layer.conv.bias.fill_(1)
    assert layer(torch.tensor([[[[1.0, 2]]]])).tolist() == [[[[3, 3, 5, 5]] * 2]]
    assert layer(torch.tensor([[[[1.0, 2]]]]), (1, 3)).tolist() == [[[[3, 3, 5]]]]


@pytest.mark.parametrize("channels, size", [(1, (1, 1)), (3, (4, 5)), (32, (7, 2))])
@torch.no_grad()
def test_the_transposed_convolution_equals_upsampling_then_convolving(channels, size):
    """Nearest-neighbour upsampling, then W, is a transposed convolution with W ∗ 1₂ₓ₂. Tolerance 1e-12 in float64."""
    layer, x = Upsample(channels).double(), torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(layer.upsample2x_conv(x), layer(x, (2 * size[0], 2 * size[1])), rtol=0, atol=1e-12)
