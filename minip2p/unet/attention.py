"""The UNet's transformer layers. They project to q, k and v, call `attend`, and project back.

What attention computes is up to `attend`: this module does not know. Module and parameter names are checkpoint keys.

Axes: b batch, n tokens (latent pixels, or tokens of the prompt), h heads, d width of a head, c channels.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minip2p.attention.contract import Attend, Site, fused


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2): x b n c, context b n c' -> b n c.

    Without a context it is self-attention.
    """

    def __init__(self, channels: int, context_channels: int, heads: int, site: Site):
        super().__init__()
        self.heads = heads
        self.width = channels // heads
        self.site = site
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None = None, attend: Attend = fused) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            rearrange(y, "b n (h d) -> b h n d", h=self.heads)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(rearrange(attend(q, k, v, self.site), "b h n d -> b n (h d)"))


class GEGLU(nn.Module):
    """GEGLU(x) = (W₁x) ⊙ gelu(W₂x) (Shazeer 2020, eq. 5). One matrix holds W₁ above W₂."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """FFN_GEGLU(x) = W₃ GEGLU(x) (Shazeer 2020, eq. 6), with a hidden layer four times as wide."""

    def __init__(self, channels: int):
        super().__init__()
        # Checkpoint keys number the layers 0 and 2. Layer 1 was the dropout of the training.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """x += self_attention(norm(x));  x += cross_attention(norm(x), context);  x += feed_forward(norm(x))."""

    def __init__(self, channels: int, context_channels: int, heads: int, self_site: Site, cross_site: Site):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads, self_site)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context_channels, heads, cross_site)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor, attend: Attend) -> Tensor:
        x = x + self.attn1(self.norm1(x), None, attend)
        x = x + self.attn2(self.norm2(x), context, attend)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, b c h w -> b c h w, with a residual connection.

    `sites` alternates self-attention and cross-attention, one pair per block. The projections in and out are 1×1
    convolutions in SD 1.x and linear layers in SD 2.x and SDXL: the same sums, weights of another shape.
    """

    def __init__(self, channels: int, context_channels: int, heads: int, groups: int, linear: bool, sites: list[Site]):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_channels, heads, self_site, cross_site)
            for self_site, cross_site in zip(sites[::2], sites[1::2], strict=True)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor, attend: Attend) -> Tensor:
        height = x.shape[-2]
        y = self.norm(x)
        if not self.linear:
            y = self.proj_in(y)
        y = rearrange(y, "b c h w -> b (h w) c")
        if self.linear:
            y = self.proj_in(y)
        for block in self.transformer_blocks:
            y = block(y, context, attend)
        if self.linear:
            y = self.proj_out(y)
        y = rearrange(y, "b (h w) c -> b c h w", h=height)
        if not self.linear:
            y = self.proj_out(y)
        return x + y
