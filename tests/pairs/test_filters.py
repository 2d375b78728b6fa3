"""Filters: what CLIP and the model itself say of a pair."""

import ast
import math

import pytest
import torch
from paths import ROOT
from small_clip import write_clip

from minip2p.checkpoints.components import RowCounter
from minip2p.metrics.clip_score import ClipScore
from minip2p.pairs.filters import Classifier, background_psnr, clip_scores, model_scores
from minip2p.sampling.guidance import unet_noise

CAT, TIGER = "a cat on the beach", "a tiger on the beach"


def test_clip_scores_are_those_of_the_published_code(tmp_path):
    """metrics/clip_similarity.py of timothybrooks/instruct-pix2pix: cosines of normalized embeddings, and of their
    differences. float32, to 1e-5."""
    clip = ClipScore(write_clip(tmp_path))
    before, after = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    scores = clip_scores(clip, before, after, CAT, TIGER)
    assert scores["clip_source"] == pytest.approx(clip(before, CAT) / 100, abs=1e-5)
    assert scores["clip_target"] == pytest.approx(clip(after, TIGER) / 100, abs=1e-5)
    pixels = [((image + 1) * 127.5).round().to(torch.uint8) for image in (before, after)]
    inputs = clip.processor(text=[CAT, TIGER], images=pixels, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = clip.model(**inputs)
    image = torch.nn.functional.normalize(out.image_embeds, dim=1)
    text = torch.nn.functional.normalize(out.text_embeds, dim=1)
    similarity = torch.nn.functional.cosine_similarity
    assert scores["clip_image"] == pytest.approx(float(similarity(image[:1], image[1:])), abs=1e-5)
    direction = float(similarity(image[1:] - image[:1], text[1:] - text[:1]))
    assert scores["clip_direction"] == pytest.approx(direction, abs=1e-5)


def test_the_classifier_s_losses_by_hand(small_model, device):
    """ε of x_t = √ᾱ x_0 + √(1 − ᾱ) ε, at the middle of each half of the timesteps. float32, to 1e-6."""
    c, run = small_model.components, small_model.generate(CAT, seed=1, steps=2)
    classifier = Classifier(c, run.latents.shape[1:], noises=2, guidance_scale=4.0, seed=5)
    assert classifier.times == [250, 750]
    noises = torch.randn(2, *run.latents.shape[1:], generator=torch.Generator().manual_seed(5))
    x0, expected = run.latents[-1:].to(device), []
    for t, noise in zip((250, 750), noises.to(device), strict=True):
        alpha = c.scheduler.alphas_cumprod[t]
        with torch.no_grad():
            predicted = unet_noise(c, alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise, t, c.text([TIGER]))
        expected.append(float((predicted - noise).square().mean()))
    assert classifier.losses(x0, [TIGER])[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_fits_are_mean_logarithms_and_no_loss_is_computed_twice(small_model):
    counter = RowCounter()
    pipe = small_model.counting(counter)
    source = pipe.generate(CAT, seed=1, steps=2)
    edits = pipe.edit(source, [TIGER, CAT + " in the fog", TIGER])
    classifier = Classifier(pipe.components, source.latents.shape[1:], noises=3, guidance_scale=4.0, seed=0)
    counter.rows = 0
    first, second, third = model_scores(classifier, source, edits)
    assert counter.rows == 3 * (3 + 2 * 3)  # the source under three captions, and each edit under two
    known = classifier.known
    by_hand = (known[id(edits[0]), CAT] / known[id(edits[0]), TIGER]).log().mean()
    assert first["fits_target"] == pytest.approx(float(by_hand)) and first == third != second
    assert first["fits_source"] == pytest.approx(-classifier.fit(source, TIGER, CAT))


def test_the_model_knows_which_picture_is_which(model):
    """Two pictures of the small world under either caption, without an edit."""
    cat, snow = model.generate([CAT, "a cat in the snow"], seed=[3, 3], steps=8)
    classifier = Classifier(model.components, cat.latents.shape[1:], noises=2, guidance_scale=4.0, seed=0)
    (scores,) = model_scores(classifier, cat, [snow])
    assert scores["fits_source"] > 0.05 and scores["fits_target"] > 0.05


def test_the_background_is_outside_of_the_mask():
    before, after = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    after[:, 0], after[:, 3] = 1.0, 0.2  # on the scale of [0, 1] an error of .1 in one of the three rows outside
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0] = True
    assert background_psnr(before, after, mask) == pytest.approx(-10 * math.log10(0.01 / 3), abs=1e-4)
    assert background_psnr(before, after, None) is None
    assert background_psnr(before, after, torch.ones(4, 4, dtype=torch.bool)) is None


def test_the_judge_filters_nothing():
    """It is the exam: no other file of the folder imports it, and no other reads what it has to find."""
    for file in (ROOT / "minip2p" / "pairs").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        modules = [node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        assert file.stem == "exam" or not any("judge" in (module or "") for module in modules), file
        assert file.stem in ("exam", "prompts", "dataset") or "expected" not in text, file
