"""What a run runs on: the networks and the schedule, and the one call that asks them for the noise.

Axes: b batch, c h w latents, n tokens, d width of their embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minip2p.attention import Attend, Site, fused
from minip2p.sched import Schedule
from minip2p.text import Text
from minip2p.unet import UNet
from minip2p.vae import VAE


@dataclass(eq=False)
class Parts:
    """What a run runs on. Latents and the schedule are float32 whatever the networks' dtype."""

    unet: UNet
    vae: VAE
    text: Text
    sched: Schedule

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def decode(self, latents: Tensor) -> Tensor:
        """Latents b c h w -> pictures in [-1, 1], b 3 H W. Raises ValueError where they are not finite."""
        pictures = self.vae.decode(self.vae.unscale(latents).to(self.dtype)).float()
        if not torch.isfinite(pictures).all():
            raise self.not_finite("the decoded picture is not finite")
        return pictures.clamp(-1, 1)

    def not_finite(self, what: str) -> ValueError:
        """The error to raise where a result is not finite: it names the first damaged weight, if there is one."""
        for name, part in (("unet", self.unet), ("vae", self.vae), ("text_encoder", self.text.encoder)):
            for key, p in part.named_parameters():
                if not torch.isfinite(p).all():
                    return ValueError(f"{self.text.folder / name}: {key} is not finite: the weights are damaged")
        return ValueError(f"{what}; try --dtype float32 or less guidance")

    def predict(
        self, x: Tensor, t: int, unconditional: Tensor, conditional: Tensor, guidance: float, attend: Attend
    ) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022, eq. 6, as w = 1 + theirs):  ε_u + w (ε_c − ε_u).

        x: b c h w; embeddings: b n d each. `attend` acts on the conditional rows alone. At w = 1 the unconditional
        rows would cancel, so they are not run.
        """
        x = x.to(self.dtype)
        if guidance == 1:
            return self.unet(x, t, conditional, attend).float()
        both = self.unet(torch.cat([x, x]), t, torch.cat([unconditional, conditional]), second_half(attend))
        without, with_ = both.float().chunk(2)
        return without + guidance * (with_ - without)


def second_half(attend: Attend) -> Attend:
    """Acts as `attend` on the second half of the batch and as `fused` on the first. Always in two calls, so that a run
    has the same bits whether or not its attention is watched."""

    def halves(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        n = len(q) // 2
        return torch.cat([fused(q[:n], k[:n], v[:n]), attend(q[n:], k[n:], v[n:], site)])

    return halves
