"""The training of the UNet and the text encoder: its loss by hand, its captions, and a warm start."""

import pytest
import torch
from torch import nn

from minip2p.attention.contract import fused
from minip2p.io.files import shipped_weights
from minip2p.sched import DDIMScheduler
from minip2p.tiny.export import trained_steps
from minip2p.tiny.loop import seeded_generator
from minip2p.tiny.train_unet import (
    SCHEDULER_CONFIG,
    UNetRun,
    denoising_loss,
    draw_captions,
    stratified_timesteps,
    train_unet,
)


def test_stratified_timesteps_are_one_from_each_part():
    t = stratified_timesteps(10, 1000, seeded_generator(0))
    assert (t // 100).tolist() == list(range(10))


def test_the_loss_is_weighted_by_one_over_root_snr():
    """w = 1 / √SNR times the squared error, for a network that always predicts zero."""

    class ZeroDenoiser(nn.Module):
        def text(self, input_ids):
            return type("Output", (), {"last_hidden_state": None})

        def unet(self, x, t, context, attend):
            return torch.zeros_like(x)

    scheduler, x0 = DDIMScheduler(SCHEDULER_CONFIG), torch.zeros(4, 4, 2, 2)
    loss = denoising_loss(ZeroDenoiser(), scheduler, x0, torch.zeros(4, 77), seeded_generator(3), fused)
    generator = seeded_generator(3)
    t = stratified_timesteps(4, 1000, generator)
    noise = torch.randn(x0.shape, generator=generator)
    alpha_cumprod = scheduler.alphas_cumprod[t].tolist()
    weights = [((1 - alpha) / alpha) ** 0.5 for alpha in alpha_cumprod]
    expected = [weight * float(eps.square().mean()) for weight, eps in zip(weights, noise, strict=True)]
    assert float(loss) == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_a_tenth_of_the_captions_is_empty():
    _, captions = draw_captions(0, 1, torch.arange(600))
    assert 0.06 < sum(caption == "" for caption in captions) / 600 < 0.14


def test_a_warm_start_takes_the_weights_that_ship(tmp_path, model):
    """With no step left to train, what is written is the weights that it started from."""

    class UnscaledLatents:
        def scaling_factor(self):
            return 1.0

    weights, written = shipped_weights("tiny"), []
    run = UNetRun(tmp_path, tmp_path / "out", seed=0, steps=0, warm_start=weights, stop_at=0.0)
    train_unet(run, UnscaledLatents(), lambda *arguments: written.append(arguments))
    ((folder, denoiser, steps),) = written
    assert (folder, steps) == (run.out, trained_steps(weights)["unet"])
    for module, trained in (
        (model.unet, denoiser.unet),
        (model.text.encoders["text_encoder"], denoiser.text),
    ):
        assert all(torch.equal(p, trained.get_parameter(name)) for name, p in module.named_parameters())
