"""The UNet of latent diffusion (Rombach et al. 2022, figure 3), generic over the fields of unet/config.json."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minip2p.attention.contract import Attend, Site, fused
from minip2p.config import UNetConfig
from minip2p.unet.attention import Attention
from minip2p.unet.blocks import BlockBuilder, MidBlock, UNetBlock


def timestep_embedding(t: Tensor, channels: int, flip_sin_to_cos: bool = True, shift: float = 0) -> Tensor:
    """Sinusoidal embedding (Vaswani et al. 2017, section 3.5): t b -> b channels, float32.

    [cos(t ω_0) …, sin(t ω_0) …],  ω_i = 10000^(−i / (channels/2 − shift))
    """
    half = channels // 2
    omega = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - shift))
    angle = t.float()[:, None] * omega  # b half
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([cos, sin] if flip_sin_to_cos else [sin, cos], dim=-1)


class TimestepEmbedding(nn.Module):
    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.linear_1 = nn.Linear(inner, outer)
        self.linear_2 = nn.Linear(outer, outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class UNet(nn.Module):
    """Predicts the noise (or v) in latents x at time t, given the words: b c h w -> b c h w."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = c = config
        widths, layers, levels = c.block_out_channels, c.layers_per_block, len(c.block_out_channels)
        build = BlockBuilder(c, {})
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        if c.addition_embed_type == "text_time":  # SDXL
            if c.projection_class_embeddings_input_dim is None or c.addition_time_embed_dim is None:
                raise ValueError(
                    "unet config: text_time needs projection_class_embeddings_input_dim and addition_time_embed_dim"
                )
            self.add_embedding = TimestepEmbedding(c.projection_class_embeddings_input_dim, 4 * widths[0])

        self.down_blocks, skips = nn.ModuleList(), [widths[0]]
        for level, kind in enumerate(c.down_block_types):
            last = level == levels - 1
            inner = [widths[max(level - 1, 0)]] + [widths[level]] * (layers - 1)
            attention = has_attention(kind, "DownBlock2D")
            self.down_blocks.append(UNetBlock(build, "down", level, inner, attention, None if last else "down"))
            skips += [widths[level]] * (layers if last else layers + 1)

        self.mid_block = MidBlock(build)

        self.up_blocks, x = nn.ModuleList(), widths[-1]
        for level, kind in zip(reversed(range(levels)), c.up_block_types, strict=True):
            inner = []
            for _ in range(layers + 1):
                inner.append(x + skips.pop())
                x = widths[level]
            attention = has_attention(kind, "UpBlock2D")
            self.up_blocks.append(UNetBlock(build, "up", level, inner, attention, "up" if level else None))

        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[0], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], c.out_channels, 3, padding=1)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention module, in the order of the forward pass."""
        parts = self.down_blocks, self.mid_block, self.up_blocks
        return tuple(module for part in parts for module in part.modules() if isinstance(module, Attention))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every attention site, in the order of the forward pass."""
        return tuple(attention.site for attention in self.attentions)

    @property
    def heads(self) -> dict[Site, int]:
        """How many heads each attention site has."""
        return {attention.site: attention.heads for attention in self.attentions}

    @property
    def stride(self) -> int:
        """Latent pixels a side per pixel of the lowest level."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def time_text_embedding(self, t: Tensor, added: tuple[Tensor, Tensor] | None) -> Tensor:
        """What the residual blocks hear of time, b e. added: pooled text b d, sizes b 6 (Podell et al. 2023)."""
        c, dtype = self.config, self.conv_in.weight.dtype

        def wave(t: Tensor, channels: int) -> Tensor:
            return timestep_embedding(t, channels, c.flip_sin_to_cos, c.freq_shift).to(dtype)

        emb = self.time_embedding(wave(t, c.block_out_channels[0]))
        if c.addition_embed_type is None:
            return emb
        if added is None or c.addition_time_embed_dim is None:
            raise ValueError("this UNet needs `added`: the pooled text embedding and the sizes, b d and b 6")
        pooled, sizes = added
        waves = wave(sizes.flatten(), c.addition_time_embed_dim).reshape(len(pooled), -1)
        return emb + self.add_embedding(torch.cat([pooled, waves], dim=-1))

    def forward(
        self,
        x: Tensor,
        t: Tensor | int,
        context: Tensor,
        attend: Attend = fused,
        added_cond: tuple[Tensor, Tensor] | None = None,
        gradient_checkpointing: bool = False,
    ) -> Tensor:
        """x: b c h w. t: a training time step, one for all or b. context: b n d. -> the prediction, b c h w. again: of
        activations that a gradient needs keep only those between layers (Chen et al. 2016)."""
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        emb = self.time_text_embedding(t, added_cond)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            skips += block.down(skips[-1], emb, context, attend, gradient_checkpointing)
        x = self.mid_block(skips[-1], emb, context, attend)
        for block in self.up_blocks:
            n = len(block.resnets)
            x = block.up(x, skips[-n:], emb, context, attend, gradient_checkpointing)
            skips = skips[:-n]
            for upsample in block.upsamplers:  # to the skip's size: odd sizes were rounded up on the way down
                x = upsample(x, skips[-1].shape[-2:])
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def has_attention(kind: str, plain: str) -> bool:
    """Whether a block type of the config has attention: 'CrossAttn' + the plain type. Raises for any other type."""
    if kind not in (plain, "CrossAttn" + plain):
        raise ValueError(f"unet config: block type {kind!r} is not supported, only {plain} and CrossAttn{plain} are")
    return kind != plain
