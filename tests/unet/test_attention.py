"""The UNet's transformer layers: the feed-forward formula, calculated by hand."""

import math

import torch

from minip2p.unet.attention import FeedForward


def test_feed_forward_is_ffn_geglu_of_shazeer_eq_6():
    """FFN(x) = (gelu(x W) ⊙ x V) W₂, gelu(a) = a Φ(a). The checkpoint stacks V above W."""
    feed_forward = FeedForward(2)
    with torch.no_grad():
        for n, p in enumerate(feed_forward.parameters()):
            p.copy_(torch.sin(torch.arange(p.numel()) + 3.0 * n).reshape(p.shape))
    x = [0.5, -2.0]
    stacked, stacked_bias, outer, outer_bias = [p.tolist() for p in feed_forward.parameters()]

    def affine(rows, bias, vector):
        return [sum(w * a for w, a in zip(row, vector, strict=True)) + b for row, b in zip(rows, bias, strict=True)]

    projected = affine(stacked, stacked_bias, x)
    values, gates = projected[:8], projected[8:]
    hidden = [v * a * (1 + math.erf(a / math.sqrt(2))) / 2 for v, a in zip(values, gates, strict=True)]
    expected = affine(outer, outer_bias, hidden)
    torch.testing.assert_close(feed_forward(torch.tensor([x])), torch.tensor([expected]))
