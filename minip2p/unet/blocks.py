"""The UNet's levels. One class serves the way down and the way up; parameter names are the checkpoint's."""

from collections.abc import Iterable
from dataclasses import dataclass
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
    """Builds layers from the config and numbers the attention sites of each place, in the order of the forward pass."""

    config: UNetConfig
    numbered: dict[str, int]

    def resnet(self, inner: int, outer: int) -> ResnetBlock:
        emb = 4 * self.config.block_out_channels[0]
        return ResnetBlock(inner, outer, groups=self.config.norm_num_groups, eps=self.config.norm_eps, emb_channels=emb)

    def transformer(self, place: Place, level: int) -> SpatialTransformer:
        c = self.config
        sites = []
        for _ in range(c.per_level(c.transformer_layers_per_block)[level]):
            index = self.numbered.get(place, 0)
            self.numbered[place] = index + 1
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
    """One level on one side: residual blocks, after each of them a transformer where the level has attention, and a
    resampler. `widths` are the input channels of each residual block; on the way up they include the skip's."""

    def __init__(
        self,
        build: BlockBuilder,
        place: Place,
        level: int,
        widths: Iterable[int],
        attention: bool,
        resample: str | None,
    ):
        super().__init__()
        outer = build.config.block_out_channels[level]
        self.resnets = nn.ModuleList(build.resnet(inner, outer) for inner in widths)
        self.attentions = nn.ModuleList(build.transformer(place, level) for _ in self.resnets if attention)
        self.downsamplers = nn.ModuleList([Downsample(outer, padding=1)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Upsample(outer)] if resample == "up" else [])

    def layer(
        self, i: int, x: Tensor, emb: Tensor, context: Tensor, attend: Attend, gradient_checkpointing: bool = False
    ) -> Tensor:
        """again: keep nothing of what happens here for a gradient, but make it again when it is asked for."""
        if gradient_checkpointing:
            return checkpoint(self.layer, i, x, emb, context, attend, use_reentrant=False)
        x = self.resnets[i](x, emb)
        return self.attentions[i](x, context, attend) if self.attentions else x

    def down(
        self, x: Tensor, emb: Tensor, context: Tensor, attend: Attend, gradient_checkpointing: bool = False
    ) -> list[Tensor]:
        """All that this level makes, in order: the last is its output, and every one is a skip for the way up."""
        made = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, emb, context, attend, gradient_checkpointing)
            made.append(x)
        return made + [downsample(x) for downsample in self.downsamplers]

    def up(
        self,
        x: Tensor,
        skips: list[Tensor],
        emb: Tensor,
        context: Tensor,
        attend: Attend,
        gradient_checkpointing: bool = False,
    ) -> Tensor:
        """Joins the latest skips one by one. `skips` is read from its end and must be the level's own."""
        for i, skip in zip(range(len(self.resnets)), reversed(skips), strict=True):
            x = self.layer(i, torch.cat([x, skip], dim=1), emb, context, attend, gradient_checkpointing)
        return x


class MidBlock(nn.Module):
    def __init__(self, build: BlockBuilder):
        super().__init__()
        level = len(build.config.block_out_channels) - 1
        width = build.config.block_out_channels[level]
        self.resnets = nn.ModuleList(build.resnet(width, width) for _ in range(2))
        self.attentions = nn.ModuleList([build.transformer("mid", level)])

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, attend: Attend) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, emb), context, attend), emb)
