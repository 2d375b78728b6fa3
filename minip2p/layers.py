"""The three convolutional layers that the UNet and the VAE share.

Axes: b batch, c channels, h height, w width; e channels of the time embedding; i o input and output channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Residual block (He et al. 2016; the form of Ho et al. 2020, appendix B):

        h = conv1(silu(norm1(x)));  h = h + W silu(emb);  h = conv2(silu(norm2(h)));  out = shortcut(x) + h

    emb is the time embedding, b e; the VAE has none (`emb_channels=None`). The shortcut is the identity where the
    numbers of channels are equal, otherwise a 1 × 1 convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, eps: float, emb_channels: int | None = None
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if emb_channels is None else nn.Linear(emb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and emb is not None:
            h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halves the resolution by a convolution of stride 2: b c h w -> b c h/2 w/2.

    The UNet pads all four sides by one (`padding=1`). The VAE pads only the right and the lower side (`padding=0`), as
    its weights were trained.
    """

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size` (by default to twice the resolution), then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            return self.upsample2x_conv(x)
        return self.conv(F.interpolate(x, size, mode="nearest"))

    def upsample2x_conv(self, x: Tensor) -> Tensor:
        """Upsampling by 2 and the convolution in one step: b c h w -> b c 2h 2w.

        It is a transposed convolution with the kernel W ∗ 1₂ₓ₂. It takes 16 products per pixel of x instead of 36, and
        does not form the upsampled input. It pays where pixels are many and channels are few, as in the VAE.
        """
        W = self.conv.weight.flip(2, 3).transpose(0, 1)  # o i 3 3 -> i o 3 3, as a transposed convolution expects
        wide = F.pad(W, (0, 1)) + F.pad(W, (1, 0))  # i o 3 4
        kernel = F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))  # i o 4 4
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
