"""The model that ships, on twelve committed renders of combinations that it was never trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p.evaluation.tiny_report import iou, psnr

RENDERS = Path(__file__).parent / "data" / "renders"


@pytest.fixture(scope="module")
def renders():
    """Pictures b 3 H W in [-1, 1], and their captions."""
    truth = json.loads((RENDERS / "truth.json").read_text(encoding="utf-8"))
    pictures = np.stack([np.asarray(Image.open(RENDERS / row["picture"])) for row in truth])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1, [row["caption"] for row in truth]


@torch.no_grad()
def noise_errors(model, pictures, captions, t):
    """Mean squared error of the predicted noise, b."""
    x0 = model.vae.scale(model.vae.encode(pictures)[0])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x = model.scheduler.add_noise(x0, noise, torch.full((len(x0),), t))
    return (model.unet(x, t, model.text(captions)) - noise).square().mean((1, 2, 3))


def test_the_vae_reconstructs_renders(model, renders):
    pictures, _ = renders
    with torch.no_grad():
        again = model.vae.decode(model.vae.encode(pictures)[0]).clamp(-1, 1)
    measured = np.mean([psnr(a, b) for a, b in zip(pictures, again, strict=True)])
    print(f"PSNR {measured:.2f} dB")
    assert measured > 24


def test_latents_have_a_deviation_of_about_one(model, renders):
    with torch.no_grad():
        latents = model.vae.scale(model.vae.encode(renders[0])[0])
    assert 0.7 < float(latents.std()) < 1.4


def test_the_unet_hears_its_caption(model, renders):
    """The true caption predicts the noise better than another picture's does, on the whole and for most pictures."""
    pictures, captions = renders
    true = noise_errors(model, pictures, captions, 700)
    false = noise_errors(model, pictures, captions[1:] + captions[:1], 700)
    print(f"noise error {float(true.mean()):.4f} with the true caption, {float(false.mean()):.4f} with another's")
    assert true.mean() < 0.95 * false.mean()
    assert (true < false).float().mean() > 0.7
    assert true.mean() < 0.25  # of a variance of one


def test_psnr_by_hand():
    a, b = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    assert psnr(a, b) == 60
    b[:, 0, 0] = 0.2
    assert psnr(a, b) == pytest.approx(10 * np.log10(4 / 0.01))
    assert psnr(a, b, torch.tensor([[True, False], [False, False]])) == pytest.approx(20)
    assert psnr(a, b, torch.tensor([[False, True], [True, True]])) == 60


def test_iou_by_hand():
    a, b = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, a) == 1
    assert iou(a & ~a, a & ~a) == 0
