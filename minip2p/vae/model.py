"""The variational autoencoder of latent diffusion (Kingma & Welling 2013; Rombach et al. 2022, section 3.1).

Axes: b batch, c latent channels, H W height and width of an image, h w of its latent (H / stride, W / stride).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minip2p.config import VAEConfig
from minip2p.vae.blocks import Decoder, Encoder

TILE = 1024  # pixels: a picture of more than TILE² pixels is decoded in squares of this side
OVERLAP = 0.25  # of neighbouring squares, as a share of their side


class VAE(nn.Module):
    """Images in [-1, 1], b 3 H W <-> latents, b c h w.

    `encode` and `decode` speak of the encoder's own latents. The diffusion model works on scaled ones: `scale` and
    `unscale` convert.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(c, c, 1) if config.use_post_quant_conv else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights. SDXL's VAE overflows in float16, so it stays float32 where the UNet is float16."""
        return self.decoder.conv_in.weight.dtype

    @property
    def stride(self) -> int:
        """The side of a latent pixel, in image pixels."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """q(z | x) = N(mean, std²): images in [-1, 1], b 3 H W -> mean and std, each b c h w, unscaled."""
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)  # b 2c h w -> b c h w, twice
        # The clamp is part of the model: outside of this range exp underflows or overflows.
        return mean, torch.exp(0.5 * log_variance.clamp(-30, 20))

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents, b c h w -> images, b 3 H W, roughly in [-1, 1] and not clamped.

        An image of more than `TILE` × `TILE` pixels is decoded in tiles, for less memory. Its group norms and its
        attention then see a tile at a time, so it differs a little from the image decoded at once.
        """
        side = TILE // self.stride
        return self.decode_at_once(z) if z[0, 0].numel() <= side**2 else decode_tiles(self.decode_at_once, z, side)

    def decode_at_once(self, z: Tensor) -> Tensor:
        """As `decode`, without tiles."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def scale(self, z: Tensor) -> Tensor:
        """The encoder's latents -> the diffusion model's, of standard deviation about one: (z − shift) · scale."""
        return (z - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def unscale(self, x: Tensor) -> Tensor:
        """The diffusion model's latents -> the decoder's: x / scale + shift. The inverse of `scale`."""
        return x / self.config.scaling_factor + (self.config.shift_factor or 0.0)


def decode_tiles(decode: Callable[[Tensor], Tensor], z: Tensor, side: int) -> Tensor:
    """Decodes overlapping tiles of latents b c h w and fades each into those above and to the left of it.

    As in diffusers' `AutoencoderKL.tiled_decode`. side: of a tile, in latent pixels.
    """
    step, rows, above = int(side * (1 - OVERLAP)), [], None
    for top in range(0, z.shape[2], step):
        tiles: list[Tensor] = []
        for left in range(0, z.shape[3], step):
            latents = z[:, :, top : top + side, left : left + side]
            tile = decode(latents)
            stride = tile.shape[2] // latents.shape[2]
            overlap = int(side * stride * OVERLAP)
            size = side * stride - overlap
            if above is not None:
                tile = fade(above[len(tiles)], tile, overlap, dim=2)
            if tiles:
                tile = fade(tiles[-1], tile, overlap, dim=3)
            tiles.append(tile)
        rows.append(torch.cat([tile[:, :, :size, :size] for tile in tiles], 3))
        above = tiles
    return torch.cat(rows, 2)


def fade(before: Tensor, tile: Tensor, overlap: int, dim: int) -> Tensor:
    """A tile whose first rows (dim 2) or columns (dim 3) go over, linearly, from the last ones of the tile before."""
    overlap = min(overlap, before.shape[dim], tile.shape[dim])
    shape = [-1 if axis == dim else 1 for axis in range(4)]
    weight = (torch.arange(overlap, device=tile.device, dtype=tile.dtype) / overlap).view(shape)
    end, start = before.narrow(dim, before.shape[dim] - overlap, overlap), tile.narrow(dim, 0, overlap)
    rest = tile.narrow(dim, overlap, tile.shape[dim] - overlap)
    return torch.cat([end * (1 - weight) + start * weight, rest], dim)
