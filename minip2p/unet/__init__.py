"""The denoising network, whose attention is an argument."""

from minip2p.unet.model import UNet

__all__ = ["UNet"]
