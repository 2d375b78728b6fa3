"""The denoising network. Its attention is an argument of the forward pass."""

from minip2p.unet.model import UNet

__all__ = ["UNet"]
