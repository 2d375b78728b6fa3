"""The VAE's two halves, encoder and decoder. Module and parameter names are checkpoint keys.

Axes: b batch, c channels, h height, w width (H W of an image, h w of a feature map or latent).
"""

from collections.abc import Iterator
from itertools import chain, pairwise

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minip2p.attention.contract import fused
from minip2p.config import VAEConfig
from minip2p.layers import Downsample, ResnetBlock, Upsample

EPS = 1e-6  # of every group norm in the VAE; it is not a field of the config files


class VAEAttention(nn.Module):
    """Single-head self-attention over all pixels, b c h w -> b c h w, with a residual connection.

    It is not a `Site` and takes no `attend`: prompts do not reach the autoencoder, so no edit does.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")
        out = self.to_out(fused(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))
        return x + rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[-2])


class MidBlock(nn.Module):
    """The block at the lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2))
        self.attentions = nn.ModuleList([VAEAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class VAEBlock(nn.Module):
    """One resolution: `layers` residual blocks, then a downsampler (encoder), an upsampler (decoder) or neither."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, resample: str | None):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups=groups, eps=EPS) for a, b in pairwise(widths))
        self.downsamplers = nn.ModuleList([Downsample(out_channels, padding=0)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if resample == "up" else [])

    def __iter__(self) -> Iterator[nn.Module]:
        """Its layers in order, for the caller to apply one by one.

        A `forward` of the whole block would keep its input alive until it returns: 134 MB at 512 px.
        """
        return chain(self.resnets, self.downsamplers, self.upsamplers)


class Encoder(nn.Module):
    """Images, b 3 H W -> the moments of the latents, b 2c h w: the mean and the log-variance, stacked."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            VAEBlock(a, b, config.layers_per_block, groups, "down" if level < len(widths) - 1 else None)
            for level, (a, b) in enumerate(zip(widths[:1] + widths, widths, strict=False))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for layer in chain(*self.down_blocks):
            x = layer(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents, b c h w -> images, b 3 H W. The encoder's widths in reverse, with one more residual block per level."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            VAEBlock(a, b, config.layers_per_block + 1, groups, "up" if level < len(widths) - 1 else None)
            for level, (a, b) in enumerate(zip(widths[:1] + widths, widths, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for layer in chain(*self.up_blocks):
            x = layer(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
