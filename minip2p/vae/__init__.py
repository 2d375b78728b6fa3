"""The autoencoder between images and latents."""

from minip2p.vae.model import VAE

__all__ = ["VAE"]
