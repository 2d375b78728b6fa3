"""Trains the decoder of the tiny model's VAE on, for sharper pictures. The encoder stays, so that all latents stay
valid, unless it is asked for as well.

The average of all pictures that a latent may stand for is blurred, and it is the best answer to a squared error. A
small discriminator that looks at patches (Isola et al. 2017, section 3.2) tells pictures from reconstructions, and the
decoder is asked to deceive it, as in Esser et al. 2021 (VQGAN, section 3.1). It is used nowhere else.

Axes: b batch, c channels, H W height and width of a picture, h w of its latent.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minip2p.tiny.loop import Training, cooldown, half_precision, seeded_generator
from minip2p.tiny.train_vae import KL_WEIGHT, kl_divergence, reconstruction_loss
from minip2p.vae import VAE

LEARNING_RATE, EMA_DECAY = 5e-4, 0.99  # of batches of a few pictures
STEPS = 100_000  # more than any run reaches
RAMP = 500  # steps over which the weight of the discriminator rises, which at first knows nothing


class Discriminator(nn.Module):
    """Logits of whether patches are of a picture: b 3 H W -> b 1 H/8 W/8. A patch has 38 × 38 pixels."""

    def __init__(self, width: int = 32):
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList([nn.Identity(), nn.GroupNorm(8, widths[2]), nn.GroupNorm(8, widths[3])])
        self.conv_out = nn.Conv2d(widths[3], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.leaky_relu(norm(layer(x)), 0.2)
        return self.conv_out(x)


class DecoderTraining(nn.Module):
    """The parts of the VAE that are trained on, with or without its encoder, and the discriminator."""

    def __init__(self, vae: VAE, encoder: bool = False):
        super().__init__()
        self.encoder = vae.encoder if encoder else None
        self.quant_conv = vae.quant_conv if encoder else None
        self.decoder = vae.decoder
        self.post_quant_conv = vae.post_quant_conv
        self.discriminator = Discriminator()

    def decode(self, z: Tensor) -> Tensor:
        """As `VAE.decode`."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def deceived(self, y: Tensor) -> Tensor:
        """The discriminator's logits of y. Their gradient reaches y, and not the discriminator."""
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return torch.func.functional_call(self.discriminator, fixed, (y,))


def decoder_loss(parts: DecoderTraining, x: Tensor, z: Tensor, adversarial: float) -> Tensor:
    """The loss of the decoder and of the discriminator, for pictures x b 3 H W and their latents z b c h w.

    At adversarial = 0 it is `reconstruction_loss` alone. Otherwise, of the decoder: `reconstruction_loss` −
    adversarial · λ · mean D(y), where λ makes the gradients of the two terms at the decoder's last layer equally large
    (Esser et al. 2021, eq. 7). Of the discriminator D: the hinge loss ½ mean relu(1 − D(x)) + ½ mean relu(1 + D(y)).
    """
    with half_precision(x.device):
        y = parts.decode(z).float()
    if not adversarial:
        return reconstruction_loss(x, y)
    with half_precision(x.device):
        logits = parts.deceived(y).float()
        logits_x, logits_y = parts.discriminator(x).float(), parts.discriminator(y.detach()).float()
    reconstruction, deception = reconstruction_loss(x, y), -logits.mean()
    last = parts.decoder.conv_out.weight
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (deceiving,) = torch.autograd.grad(deception, last, retain_graph=True)
    balance = (wanted.norm() / (deceiving.norm() + 1e-4)).clamp(max=1e4)
    hinge = 0.5 * (F.relu(1 - logits_x).mean() + F.relu(1 + logits_y).mean())
    return reconstruction + adversarial * balance * deception + hinge


def train_decoder(
    vae: VAE,
    work: Path,
    pictures: Callable[[int], Tensor],
    *,
    seed: int,
    stop_at: float,
    adversarial: float,
    encoder: bool = False,
    steps: int = STEPS,
    rate: float = LEARNING_RATE,
) -> int:
    """Trains the decoder of a VAE in place and returns the number of steps. Resumes from `work`/decoder.

    pictures(step): the pictures of a step, b 3 H W on the VAE's device. stop_at: the time (time.time()) after which it
    stops; over the last 3 tenths of the time, or of the steps, the learning rate falls to zero. adversarial: the weight
    of the discriminator; 0 trains without it. encoder: the encoder is trained as well, so that its latents change.
    rate: the learning rate before it falls.
    """
    begin = time.time()
    torch.manual_seed(seed)
    device = vae.decoder.conv_in.weight.device
    parts = DecoderTraining(vae, encoder).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts.requires_grad_(True)

    def learning_rate(step: int) -> float:
        return rate * cooldown(time.time() - begin, stop_at - begin) * cooldown(step, steps)

    training = Training(
        parts, work / "decoder", learning_rate=learning_rate, steps=steps, ema_decay=EMA_DECAY, seed=seed
    )

    def loss(step: int) -> Tensor:
        x = pictures(step).contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(encoder), half_precision(device):
            mean, std = vae.encode(x)
        mean, std = mean.float(), std.float()
        noise = torch.randn(mean.shape, generator=seeded_generator(seed, step, 7, device=device), device=device)
        loss = decoder_loss(parts, x, mean + std * noise, adversarial * min(1.0, (step + 1) / RAMP))
        return loss + KL_WEIGHT * kl_divergence(mean, std) if encoder else loss

    training.run(loss, stop_at=stop_at)
    training.load_average()
    parts.requires_grad_(False)
    return training.step
