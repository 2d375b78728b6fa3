"""The VAE's attention layer, calculated by hand."""

import torch
from parity import on_meta, share_weights

from minip2p.vae.blocks import VAEAttention


@torch.no_grad()
def test_the_attention_is_softmax_over_all_pixels_with_one_head():
    layer = on_meta(VAEAttention, 4, 2)
    share_weights(layer)
    x = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    tokens = layer.group_norm(x)[0].reshape(4, 6).T
    q, k, v = layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens)
    rows = [sum(w * value for w, value in zip(((k @ query) / 2).softmax(0), v, strict=True)) for query in q]
    expected = x + layer.to_out(torch.stack(rows)).T.reshape(1, 4, 2, 3)
    torch.testing.assert_close(layer(x), expected)
