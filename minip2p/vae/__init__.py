"""The autoencoder between pictures and latents."""

from minip2p.vae.model import VAE

__all__ = ["VAE"]
