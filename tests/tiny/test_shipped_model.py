"""The model that ships, on twelve renders of combinations that it was never trained on (tests/data/renders)."""

import json

import numpy as np
import pytest
import torch
from paths import DATA
from PIL import Image

from minip2p.evaluation.instruct_benchmark import run_cases
from minip2p.evaluation.pie_bench import read_cases
from minip2p.metrics.image import psnr
from minip2p.pipeline import load
from minip2p.tiny.judge import Judge

RENDERS = DATA / "renders"


@pytest.fixture(scope="module")
def renders():
    """Pictures b 3 H W in [-1, 1], and their captions."""
    truth = json.loads((RENDERS / "truth.json").read_text(encoding="utf-8"))
    pictures = np.stack([np.asarray(Image.open(RENDERS / row["picture"])) for row in truth])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1, [row["caption"] for row in truth]


@pytest.fixture(scope="module")
def latents(cpu_model, renders):
    """The latents of the pictures (means, unscaled), b c h w."""
    with torch.no_grad():
        return cpu_model.vae.encode(renders[0])[0]


@torch.no_grad()
def noise_errors(cpu_model, x0, captions, t):
    """Mean squared error of the predicted noise, b."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x = cpu_model.scheduler.add_noise(x0, noise, torch.full((len(x0),), t))
    return (cpu_model.unet(x, t, cpu_model.text(captions).tokens) - noise).square().mean((1, 2, 3))


def test_the_vae_reconstructs_renders(cpu_model, renders, latents):
    pictures, _ = renders
    with torch.no_grad():
        reconstructed = cpu_model.vae.decode(latents).clamp(-1, 1)
    mean = np.mean([psnr(a, b) for a, b in zip(pictures, reconstructed, strict=True)])
    print(f"PSNR {mean:.2f} dB")
    assert mean > 24


def test_scaled_latents_have_a_standard_deviation_of_about_one(cpu_model, latents):
    assert 0.7 < float(cpu_model.vae.scale(latents).std()) < 1.4


def test_the_unet_uses_the_caption(cpu_model, renders, latents):
    """With the true caption the noise is predicted better than with another picture's: on average and for most."""
    _, captions = renders
    x0 = cpu_model.vae.scale(latents)
    true = noise_errors(cpu_model, x0, captions, 700)
    false = noise_errors(cpu_model, x0, captions[1:] + captions[:1], 700)
    print(f"noise error {float(true.mean()):.4f} with the true caption, {float(false.mean()):.4f} with another one")
    assert true.mean() < 0.95 * false.mean()
    assert (true < false).float().mean() > 0.7
    assert true.mean() < 0.25  # of a variance of one


def test_the_editor_does_what_its_instruction_says(tmp_path):
    """To the judge, of the first case of each kind in the benchmark, in its steps. Measured: six of seven."""
    rows = run_cases(load("tiny-instruct"), read_cases()[:7], tmp_path)
    right = sum(int(row["success"]) for row in rows)
    print(f"{right} of {len(rows)} instructions are followed")
    assert right >= 5


def test_the_student_draws_what_its_prompt_says_in_four_steps():
    """To the judge, the object of each prompt is the likeliest. Measured: of all six."""
    fast, judge = load("tiny-fast"), Judge.load()
    names = ("cat", "lion", "duck", "house", "apple", "car")
    pictures = [fast.generate(f"a {name} on the grass", seed=0, steps=4).picture for name in names]
    likeliest = judge(torch.stack(pictures)).likeliest_objects(1)
    right = sum(objects == {name} for objects, name in zip(likeliest, names, strict=True))
    print(f"{right} of {len(names)} objects are right after four steps")
    assert right >= 5
