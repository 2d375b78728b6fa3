"""The levels of the UNet: one class for the down path and the up path, and the block between them.

Module and parameter names are checkpoint keys.

Axes: b batch, c channels, h height, w width, e channels of the time embedding, n tokens of the prompt, d their width.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minip2p.attention.contract import Attend, Site
from minip2p.config import UNetConfig
from minip2p.layers import Downsample, ResnetBlock, Upsample
from minip2p.unet.attention import SpatialTransformer

Place = Literal["down", "mid", "up"]


@dataclass
class BlockBuilder:
    """Builds layers from the config. Numbers the attention sites of each place in the order of the forward pass."""

    config: UNetConfig
    transformer_blocks: dict[Place, int] = field(default_factory=dict)  # place -> how many have been built there

    def resnet(self, in_channels: int, out_channels: int) -> ResnetBlock:
        c = self.config
        emb_channels = 4 * c.block_out_channels[0]
        return ResnetBlock(
            in_channels, out_channels, groups=c.norm_num_groups, eps=c.norm_eps, emb_channels=emb_channels
        )

    def transformer(self, place: Place, level: int) -> SpatialTransformer:
        c = self.config
        sites = []
        for _ in range(c.per_level(c.transformer_layers_per_block)[level]):
            index = self.transformer_blocks.get(place, 0)
            self.transformer_blocks[place] = index + 1
            sites += [Site(place, index, cross, 2**level) for cross in (False, True)]
        return SpatialTransformer(
            channels=c.block_out_channels[level],
            context_channels=c.cross_attention_dim,
            heads=c.per_level(c.attention_head_dim)[level],
            groups=c.norm_num_groups,
            linear=c.use_linear_projection,
            sites=sites,
        )


class UNetBlock(nn.Module):
    """One level of the down path or the up path.

    It holds residual blocks, a transformer after each of them if the level has attention, and a resampler if
    `resample` is "down" or "up". `in_channels` lists the input channels of each residual block; on the up path they
    include the channels of the skip connection.
    """

    def __init__(
        self,
        build: BlockBuilder,
        place: Place,
        level: int,
        in_channels: Iterable[int],
        attention: bool,
        resample: str | None,
    ):
        super().__init__()
        out_channels = build.config.block_out_channels[level]
        self.resnets = nn.ModuleList(build.resnet(channels, out_channels) for channels in in_channels)
        self.attentions = nn.ModuleList(build.transformer(place, level) for _ in self.resnets if attention)
        self.downsamplers = nn.ModuleList([Downsample(out_channels, padding=1)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if resample == "up" else [])

    def layer(
        self, i: int, x: Tensor, emb: Tensor, context: Tensor, attend: Attend, gradient_checkpointing: bool = False
    ) -> Tensor:
        """The i-th residual block and its transformer: x b c h w, emb b e, context b n d -> b c h w.

        gradient_checkpointing: store none of this layer's activations for the backward pass, which recomputes them.
        """
        if gradient_checkpointing:
            return checkpoint(self.layer, i, x, emb, context, attend, use_reentrant=False)
        x = self.resnets[i](x, emb)
        return self.attentions[i](x, context, attend) if self.attentions else x

    def down(
        self, x: Tensor, emb: Tensor, context: Tensor, attend: Attend, gradient_checkpointing: bool = False
    ) -> list[Tensor]:
        """The output of each layer, in order. Every one is a skip connection; the last is the level's output."""
        hidden_states = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, emb, context, attend, gradient_checkpointing)
            hidden_states.append(x)
        return hidden_states + [downsample(x) for downsample in self.downsamplers]

    def up(
        self,
        x: Tensor,
        skips: list[Tensor],
        emb: Tensor,
        context: Tensor,
        attend: Attend,
        gradient_checkpointing: bool = False,
    ) -> Tensor:
        """The level's output before it is upsampled. `skips`: this level's skip connections, consumed from the end."""
        for i, skip in zip(range(len(self.resnets)), reversed(skips), strict=True):
            x = self.layer(i, torch.cat([x, skip], dim=1), emb, context, attend, gradient_checkpointing)
        return x


class MidBlock(nn.Module):
    """The block between the two paths, at the lowest resolution: residual block, transformer, residual block."""

    def __init__(self, build: BlockBuilder):
        super().__init__()
        level = len(build.config.block_out_channels) - 1
        channels = build.config.block_out_channels[level]
        self.resnets = nn.ModuleList(build.resnet(channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([build.transformer("mid", level)])

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, attend: Attend) -> Tensor:
        x = self.resnets[0](x, emb)
        x = self.attentions[0](x, context, attend)
        return self.resnets[1](x, emb)
