"""The three convolutional layers that the UNet and the VAE share. Axes: b batch, c channels, h height, w width."""

import torch.nn.functional as F
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Residual block (He et al. 2016; the form of Ho et al. 2020, appendix B):

        h = conv1(silu(norm1(x)));  h = h + W silu(emb);  h = conv2(silu(norm2(h)));  out = shortcut(x) + h

    emb is the time embedding, b e; the VAE has none (`emb_channels=None`).
    """

    def __init__(self, inner: int, outer: int, *, groups: int, eps: float, emb_channels: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inner, eps=eps)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.time_emb_proj = None if emb_channels is None else nn.Linear(emb_channels, outer)
        self.norm2 = nn.GroupNorm(groups, outer, eps=eps)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.conv_shortcut = None if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and emb is not None:
            h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Half the resolution by a convolution of stride 2.

    The UNet pads all sides by one. The VAE pads only right and below (`padding=0`), as its weights were trained.
    """

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))  # b c h w -> b c h/2 w/2


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size` (twice the resolution where none is given), then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            return self.upsample2x_conv(x)
        return self.conv(F.interpolate(x, size, mode="nearest"))

    def upsample2x_conv(self, x: Tensor) -> Tensor:
        """Both at once, by a transposed convolution with W ∗ 1₂ₓ₂: 16 products for a pixel of x and not 36, and the
        large picture in between is never made. It pays where pixels are many and channels are few, as in the VAE."""
        W = self.conv.weight.flip(2, 3).transpose(0, 1)  # o i 3 3 -> i o 3 3, as a transposed convolution reads it
        wide = F.pad(W, (0, 1)) + F.pad(W, (1, 0))  # i o 3 4
        both = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))  # i o 4 4
        return F.conv_transpose2d(x, both, self.conv.bias, stride=2, padding=1)  # b c h w -> b c 2h 2w
