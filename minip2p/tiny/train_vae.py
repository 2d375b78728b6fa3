"""Trains the VAE of the tiny model: its batches, its loss and its training run.

Axes: b batch, c latent channels, H W height and width of a picture, h w of its latent.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.config import VAEConfig
from minip2p.pipeline import load
from minip2p.tiny.export import trained_steps
from minip2p.tiny.loop import Training, cooldown, half_precision, seeded_generator
from minip2p.tiny.render import render_batch
from minip2p.tiny.scenes import dataset
from minip2p.tiny.sprites import Sprites
from minip2p.vae import VAE

VAE_CONFIG = VAEConfig(
    block_out_channels=(24, 48, 96, 128),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    norm_num_groups=8,
)
VAE_STEPS = 8000
CROP_STEPS = 2600  # the first steps train on crops, the others on full pictures
FREEZE_STEP = 6900  # from here on only the decoder is trained
VAE_BATCH = 16  # crops per step
LEARNING_RATE, EMA_DECAY, KL_WEIGHT = 5e-4, 0.998, 1e-5


def vae_batch(seed: int, step: int, sprites: Sprites) -> Tensor:
    """The pictures of a training step, b 3 H W in [-1, 1].

    At first two random 64-px crops of each of eight new scenes. From step CROP_STEPS on four full pictures, because the
    statistics of the group norms and of the attention differ between a crop and a full picture, which is what the VAE
    will be used on.
    """
    if step >= CROP_STEPS:
        return render_batch(list(dataset(seed, 4, start=step * VAE_BATCH)), sprites)
    pictures = render_batch(list(dataset(seed, VAE_BATCH // 2, start=step * VAE_BATCH)), sprites)
    size = pictures.shape[-1] // 2
    corners = torch.randint(0, size + 1, (VAE_BATCH, 2), generator=seeded_generator(seed, step)).tolist()
    return torch.stack([pictures[i // 2, :, y : y + size, x : x + size] for i, (y, x) in enumerate(corners)])


def gradient_l1(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the horizontal and vertical image gradients, summed over `scales` octaves.

    It keeps edges sharp, which L1 alone would blur.
    """
    total = a.new_zeros(())
    for _ in range(scales):
        difference = a - b
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """10 L2 + 2 L1 + 0.3 gradient L1, each a mean, of pictures x b 3 H W and their reconstructions y.

    The squared error preserves the colours: with L1 terms alone the edges outweighed them, and pictures turned grey.
    """
    return 10 * F.mse_loss(y, x) + 2 * (x - y).abs().mean() + 0.3 * gradient_l1(x, y)


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std²) ‖ N(0, 1)), a mean over all values (Kingma & Welling 2013, appendix B)."""
    return 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()


def vae_loss(vae: VAE, x: Tensor, noise: torch.Generator, kl_weight: float = KL_WEIGHT) -> Tensor:
    """`reconstruction_loss` + kl_weight · KL(q(z|x) ‖ N(0, 1)), for pictures x b 3 H W."""
    with half_precision(x.device):
        mean, std = vae.encode(x)
        y = vae.decode(mean + std * torch.randn(mean.shape, generator=noise, device=x.device))
    return reconstruction_loss(x, y.float()) + kl_weight * kl_divergence(mean, std)


def train_vae(
    work: Path,
    seed: int,
    pictures: Callable[[int], Tensor],
    stop_at: float,
    warm_start: Path | None = None,
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008, it is immutable
    stride: int = 1,
) -> tuple[VAE, int]:
    """The VAE with its averaged weights, and the number of steps that it was trained. Resumes from `work`.

    pictures(step): the pictures of a step, b 3 H W on the device; `vae_batch` on a CPU. stop_at: the time (time.time())
    after which it stops. warm_start: a folder of weights to start from. stride: see `Training`.
    From step FREEZE_STEP on only the decoder is trained, so that latents which have been cached stay valid.
    """
    torch.manual_seed(seed)
    vae = VAE(VAE_CONFIG).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def learning_rate(step: int) -> float:
        return LEARNING_RATE * cooldown(step, VAE_STEPS)

    training = Training(
        vae,
        work / "vae",
        learning_rate=learning_rate,
        steps=VAE_STEPS,
        ema_decay=EMA_DECAY,
        seed=seed,
        stride=stride,
    )
    if warm_start:
        training.warm_start(load(warm_start).vae.state_dict(), trained_steps(warm_start)["vae"])

    def loss(step: int) -> Tensor:
        if step >= FREEZE_STEP and vae.encoder.conv_in.weight.requires_grad:
            for module in (vae.encoder, vae.quant_conv):
                training.freeze(module)
        x = pictures(step).contiguous(memory_format=torch.channels_last)
        return vae_loss(vae, x, seeded_generator(seed, step, 1, device=device))

    training.run(loss, stop_at=stop_at)
    training.load_average()
    return vae.eval().requires_grad_(False), training.step
