"""The training of the VAE: its loss by hand, and a warm start."""

import pytest
import torch
from torch import nn

from minip2p.io.files import shipped_weights
from minip2p.tiny.export import trained_steps
from minip2p.tiny.loop import seeded_generator
from minip2p.tiny.train_vae import gradient_l1, train_vae, vae_loss


def test_gradient_l1_sees_edges_and_not_levels():
    a = torch.zeros(1, 3, 8, 8)
    assert gradient_l1(a, a + 1) == 0
    edge = a.clone()
    edge[..., 4:] = 1
    assert gradient_l1(a, edge, scales=1) == pytest.approx(1 / 7)


def test_the_kl_term_by_hand():
    """Mean 2, standard deviation e: ½ (4 + e² − 1 − 2) = ½ (1 + e²), times its weight."""

    class ConstantVAE(nn.Module):
        def encode(self, x):
            return torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), torch.e)

        def decode(self, z):
            return torch.zeros(1, 3, 16, 16)

    x = torch.zeros(1, 3, 16, 16)
    loss = vae_loss(ConstantVAE(), x, seeded_generator(0), kl_weight=0.5)
    assert loss.item() == pytest.approx(0.25 * (1 + torch.e**2), rel=1e-5)
    default = vae_loss(ConstantVAE(), x, seeded_generator(0))
    assert default.item() == pytest.approx(0.5e-5 * (1 + torch.e**2), rel=1e-5)


def test_a_warm_start_takes_the_weights_that_ship(tmp_path, cpu_model):
    """With no time left to train, the result is the weights that it started from."""
    weights = shipped_weights("tiny")
    vae, steps = train_vae(tmp_path, 0, lambda step: None, 0.0, weights)
    assert steps == trained_steps(weights)["vae"]
    assert all(torch.equal(p, vae.get_parameter(name)) for name, p in cpu_model.vae.named_parameters())
