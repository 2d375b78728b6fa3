"""The cache of latents: their scale, and how many scenes a training step draws from."""

import pytest
import torch

from minip2p.tiny import latents
from minip2p.tiny.latents import CHUNK, MAX_SCENES, LatentCache, scenes_available
from minip2p.tiny.loop import seeded_generator


def test_the_scaling_factor_is_one_over_the_standard_deviation(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "CHUNK", 256)
    cache = LatentCache(tmp_path, None, 0, None)
    cache.chunks = [{"latents": 4 * torch.randn(256, 4, 2, 2, generator=seeded_generator(1))}]
    assert cache.scaling_factor() == pytest.approx(0.25, rel=0.05)


def test_more_scenes_become_available_during_the_training():
    available = [scenes_available(64 * step) for step in (0, 383, 384, 10**6)]
    assert available == [3 * CHUNK, 3 * CHUNK, 4 * CHUNK, MAX_SCENES]


def test_chunks_are_computed_once_and_indexed_by_scene(tmp_path, monkeypatch, sprites):
    """The VAE is a mean over 8×8 pixels: each scene has its own latents, and regions from 0 to 1."""

    class MeanVAE:
        calls = 0

        def encode(self, pictures):
            self.calls += 1
            return torch.nn.functional.avg_pool2d(pictures, 8), None

    monkeypatch.setattr(latents, "CHUNK", 32)
    vae = MeanVAE()
    cache = LatentCache(tmp_path, vae, 0, sprites)
    both = cache[torch.tensor([3, 40])]
    assert both.shape == (2, 3, 16, 16) and vae.calls == 2 and not torch.equal(*both)
    reopened = LatentCache(tmp_path, vae, 0, sprites)
    assert torch.equal(reopened[torch.tensor([40, 3])], both.flip(0)) and vae.calls == 2
    regions = reopened.regions(torch.tensor([3]))
    assert regions.shape == (1, 4, 16, 16) and regions.min() == 0 and regions.max() == 1
