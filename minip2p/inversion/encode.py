"""Encodes photographs, and refines their latents where the VAE's encoder is not precise enough.

Axes: b batch, c h w latents, H W pixels.
"""

import math

import torch
from torch import Tensor

from minip2p.checkpoints.components import Components
from minip2p.validation import is_integer


def encode_photo(components: Components, pictures: Tensor, vae_refine_steps: int = 0) -> Tensor:
    """Pictures b 3 H W in [-1, 1] -> latents b c h w, float32, refined by so many updates (`refine_latents`).

    Raises ValueError where vae_refine_steps is no number of updates, or the latents are not finite.
    """
    if not is_integer(vae_refine_steps) or vae_refine_steps < 0:
        raise ValueError(f"vae_refine_steps is a whole number of updates from 0 on, not {vae_refine_steps!r}")
    latents = components.encode(pictures)
    if vae_refine_steps == 0:
        return latents
    return refine_latents(components, latents, pictures.to(components.device), vae_refine_steps)


def refine_latents(
    components: Components, latents: Tensor, pictures: Tensor, updates: int, learning_rate: float = 0.1
) -> Tensor:
    """Moves latents to where the decoder reproduces the pictures better, since it is not the encoder's inverse:

        min over z of  ‖D(z) − x‖²

    (Avrahami et al. 2022, blended latent diffusion, section 4.2, consider this among other ways.) Adam runs for so many
    updates, with a rate that falls evenly to 0. Each is a forward and a backward pass through the decoder.

    latents: b c h w. pictures: b 3 H W. Returns the best latents met.
    """
    with torch.inference_mode(False), torch.enable_grad():
        best, lowest, x = latents, math.inf, pictures.float().clone()
        z = latents.detach().clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=learning_rate)
        for update in range(updates + 1):
            decoded = components.vae.decode(components.vae.unscale(z).to(components.vae.dtype)).float()
            loss = (decoded - x).square().sum()  # the gradients of a mean would vanish in 16 bits
            if loss < lowest:
                best, lowest = z.detach().clone(), float(loss.detach())
            if update < updates:
                adam.param_groups[0]["lr"] = learning_rate * (1 - update / updates)
                adam.zero_grad()
                loss.backward()
                adam.step()
    return best
