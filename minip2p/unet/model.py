"""The UNet of latent diffusion (Rombach et al. 2022, figure 3), for any values of the fields of unet/config.json.

Module and parameter names are checkpoint keys.

Axes: b batch, c channels, h height, w width, e channels of the time embedding, n tokens of the prompt, d their width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minip2p.attention.contract import Attend, Site, fused
from minip2p.config import UNetConfig
from minip2p.io.tensors import to_device
from minip2p.unet.attention import Attention
from minip2p.unet.blocks import BlockBuilder, MidBlock, UNetBlock


def timestep_embedding(t: Tensor, channels: int, flip_sin_to_cos: bool = True, shift: float = 0) -> Tensor:
    """Sinusoidal embedding (Vaswani et al. 2017, section 3.5): t b -> b channels, float32.

    [cos(t ω_0) …, sin(t ω_0) …],  ω_i = 10000^(−i / (channels/2 − shift))

    flip_sin_to_cos=False puts the sines first.
    """
    half = channels // 2
    omega = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - shift))
    angle = t.float()[:, None] * omega  # b channels/2
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([cos, sin] if flip_sin_to_cos else [sin, cos], dim=-1)


class TimestepEmbedding(nn.Module):
    """The two-layer MLP after the sinusoidal embedding: linear, silu, linear. b in -> b e.

    cond_channels: the width of a second embedding, which is projected onto the first and added to it.
    """

    def __init__(self, in_channels: int, out_channels: int, cond_channels: int | None = None):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)
        if cond_channels is not None:
            self.cond_proj = nn.Linear(cond_channels, in_channels, bias=False)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is not None:
            x = x + self.cond_proj(cond)
        return self.linear_2(F.silu(self.linear_1(x)))


def has_attention(block_type: str, plain: str) -> bool:
    """Whether a block type of the config has attention: "CrossAttn" + the plain type. ValueError for any other type."""
    if block_type not in (plain, "CrossAttn" + plain):
        raise ValueError(
            f"unet config: block type {block_type!r} is not supported, only {plain} and CrossAttn{plain} are"
        )
    return block_type != plain


class UNet(nn.Module):
    """Predicts the noise ε (or v) in the latents x at timestep t, given the text: b c h w -> b c h w."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = c = config
        widths, layers, levels = c.block_out_channels, c.layers_per_block, len(c.block_out_channels)
        build = BlockBuilder(c)
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], c.time_cond_proj_dim)
        if c.addition_embed_type == "text_time":  # SDXL
            if c.projection_class_embeddings_input_dim is None or c.addition_time_embed_dim is None:
                raise ValueError(
                    "unet config: text_time needs projection_class_embeddings_input_dim and addition_time_embed_dim"
                )
            self.add_embedding = TimestepEmbedding(c.projection_class_embeddings_input_dim, 4 * widths[0])

        skip_channels = [widths[0]]  # the output channels of conv_in and of every layer of the down path
        self.down_blocks = nn.ModuleList()
        for level, block_type in enumerate(c.down_block_types):
            last = level == levels - 1
            in_channels = [widths[max(level - 1, 0)]] + [widths[level]] * (layers - 1)
            attention = has_attention(block_type, "DownBlock2D")
            self.down_blocks.append(UNetBlock(build, "down", level, in_channels, attention, None if last else "down"))
            skip_channels += [widths[level]] * (layers if last else layers + 1)

        self.mid_block = MidBlock(build)

        channels = widths[-1]
        self.up_blocks = nn.ModuleList()
        for level, block_type in zip(reversed(range(levels)), c.up_block_types, strict=True):
            in_channels = []
            for _ in range(layers + 1):
                in_channels.append(channels + skip_channels.pop())
                channels = widths[level]
            attention = has_attention(block_type, "UpBlock2D")
            self.up_blocks.append(UNetBlock(build, "up", level, in_channels, attention, "up" if level else None))

        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[0], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], c.out_channels, 3, padding=1)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention module, in the order of the forward pass."""
        in_order = self.down_blocks, self.mid_block, self.up_blocks
        return tuple(module for block in in_order for module in block.modules() if isinstance(module, Attention))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every attention site, in the order of the forward pass."""
        return tuple(attention.site for attention in self.attentions)

    @property
    def heads(self) -> dict[Site, int]:
        """The number of heads at each attention site."""
        return {attention.site: attention.heads for attention in self.attentions}

    @property
    def stride(self) -> int:
        """The side of a pixel of the lowest level, in latent pixels."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def reads_guidance(self) -> bool:
        """Whether the guidance scale is an input, as in models that are distilled for any scale."""
        return self.config.time_cond_proj_dim is not None

    def guidance_embedding(self, t: Tensor, guidance_scale: float | None) -> Tensor | None:
        """The embedding of the guidance scale w, b d, for timesteps b; None if the UNet does not read it.

        It has the sinusoids of 1000 (w − 1), as diffusers has them. Raises ValueError where the UNet lacks w.
        """
        if self.config.time_cond_proj_dim is None:
            return None
        if guidance_scale is None:
            raise ValueError("this UNet needs `guidance_scale`, which it reads")
        w = torch.full_like(t, 1000 * (guidance_scale - 1), dtype=torch.float32)
        return timestep_embedding(w, self.config.time_cond_proj_dim, False, 1).to(self.conv_in.weight.dtype)

    def time_text_embedding(
        self, t: Tensor, added_cond: tuple[Tensor, Tensor] | None, guidance_scale: float | None = None
    ) -> Tensor:
        """The embedding that every residual block receives: t b -> b e.

        added_cond: SDXL's pooled text embedding, b d, and sizes, b 6 (Podell et al. 2023, sections 2.1 and 2.2).
        guidance_scale: for a UNet that reads it. Raises ValueError if the UNet needs one of them and it is None.
        """
        c, dtype = self.config, self.conv_in.weight.dtype

        def sinusoids(t: Tensor, channels: int) -> Tensor:
            return timestep_embedding(t, channels, c.flip_sin_to_cos, c.freq_shift).to(dtype)

        cond = self.guidance_embedding(t, guidance_scale)
        emb = self.time_embedding(sinusoids(t, c.block_out_channels[0]), cond)
        if c.addition_embed_type is None:
            return emb
        if added_cond is None or c.addition_time_embed_dim is None:
            raise ValueError("this UNet needs `added_cond`: the pooled text embedding and the sizes, b d and b 6")
        pooled, sizes = added_cond
        size_embedding = sinusoids(sizes.flatten(), c.addition_time_embed_dim).reshape(len(pooled), -1)
        return emb + self.add_embedding(torch.cat([pooled, size_embedding], dim=-1))

    def decoder_levels(
        self,
        x: Tensor,
        t: Tensor | int,
        context: Tensor,
        attend: Attend = fused,
        added_cond: tuple[Tensor, Tensor] | None = None,
        gradient_checkpointing: bool = False,
        *,
        guidance_scale: float | None = None,
        count: int | None = None,
    ) -> list[Tensor]:
        """The output of each level of the up path, b c y x, the lowest level first, upsampled for the next level.

        The prediction is read from the last. count: run only the first so many levels. The other arguments: `forward`.
        """
        t = to_device(t, x.device) if isinstance(t, Tensor) else torch.full((), t, device=x.device)
        t = t.expand(len(x))
        emb = self.time_text_embedding(t, added_cond, guidance_scale)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            skips += block.down(skips[-1], emb, context, attend, gradient_checkpointing)
        x = self.mid_block(skips[-1], emb, context, attend)
        outputs = []
        for block in self.up_blocks[:count]:
            n = len(block.resnets)
            x = block.up(x, skips[-n:], emb, context, attend, gradient_checkpointing)
            skips = skips[:-n]
            for upsample in block.upsamplers:  # to the size of the next skip: the down path rounds odd sizes up
                x = upsample(x, skips[-1].shape[-2:])
            outputs.append(x)
        return outputs

    def forward(
        self,
        x: Tensor,
        t: Tensor | int,
        context: Tensor,
        attend: Attend = fused,
        added_cond: tuple[Tensor, Tensor] | None = None,
        gradient_checkpointing: bool = False,
        *,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The prediction, b c h w.

        x: latents, b c h w. t: the timestep of the training schedule, one for all rows or one per row (b).
        context: the text encoder's output, b n d. attend: the attention function, called once at each site.
        added_cond: see `time_text_embedding`. gradient_checkpointing: store only the activations between layers for
        the backward pass, which recomputes the others (Chen et al. 2016). guidance_scale: w, for a UNet that reads it.
        """
        levels = self.decoder_levels(
            x, t, context, attend, added_cond, gradient_checkpointing, guidance_scale=guidance_scale
        )
        x = levels[-1]
        return self.conv_out(F.silu(self.conv_norm_out(x)))
