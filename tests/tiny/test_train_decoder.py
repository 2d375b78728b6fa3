"""The training of the decoder: its loss, who gets which gradient, and an encoder that stays."""

import copy

import pytest
import torch

from minip2p.tiny.render import render_batch
from minip2p.tiny.scenes import dataset
from minip2p.tiny.train_decoder import DecoderTraining, Discriminator, decoder_loss, train_decoder
from minip2p.tiny.train_vae import VAE_CONFIG, reconstruction_loss
from minip2p.vae import VAE


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    return DecoderTraining(VAE(VAE_CONFIG))


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 32, 32, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)


def test_a_patch_has_38_pixels():
    """The logit at one position depends on these pixels and on no others."""
    torch.manual_seed(0)
    discriminator = Discriminator()
    for i in range(3):
        discriminator.norms[i] = torch.nn.Identity()  # their statistics are of the whole picture
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(x)
    assert logits.shape == (1, 1, 16, 16)
    logits[0, 0, 8, 8].backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero()[:, 0]
    assert rows.max() - rows.min() + 1 == 38


def test_without_a_discriminator_it_is_the_reconstruction_loss(parts, batch):
    x, z = batch
    parts.zero_grad()
    loss = decoder_loss(parts, x, z, 0.0)
    expected = reconstruction_loss(x, parts.decode(z).detach())
    assert float(loss.detach()) == pytest.approx(float(expected), rel=0.05)  # bfloat16
    loss.backward()
    assert all(p.grad is None for p in parts.discriminator.parameters())


def test_the_two_terms_are_balanced_at_the_last_layer(parts, batch):
    """The gradient of the deception, by itself, is `adversarial` times as large there as that of the reconstruction."""
    x, z = batch
    last, gradients = parts.decoder.conv_out.weight, {}
    for adversarial in (0.0, 1e-6, 0.5):
        parts.zero_grad()
        decoder_loss(parts, x, z, adversarial).backward()
        gradients[adversarial] = last.grad.clone()
    deception = gradients[0.5] - gradients[1e-6]
    assert float(deception.norm() / gradients[0.0].norm()) == pytest.approx(0.5, rel=0.05)
    torch.testing.assert_close(gradients[1e-6], gradients[0.0], rtol=0, atol=1e-2 * float(gradients[0.0].abs().max()))


def test_the_discriminator_learns_to_tell_and_not_to_be_deceived(parts, batch):
    """Its gradient is that of the hinge loss alone: it does not depend on the weight of the deception."""
    x, z = batch
    gradients = []
    for adversarial in (1e-6, 1.0):
        parts.zero_grad()
        decoder_loss(parts, x, z, adversarial).backward()
        gradients.append([p.grad.clone() for p in parts.discriminator.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0])


@pytest.mark.parametrize("adversarial, encoder", [(0.0, False), (0.5, False), (0.5, True)])
def test_the_encoder_stays_unless_asked_for_and_a_killed_training_resumes(
    adversarial, encoder, cpu_model, sprites, tmp_path
):
    pictures = render_batch(list(dataset(0, 2)), sprites)[..., :64, :64]
    vae, seen = copy.deepcopy(cpu_model.vae), []

    def batches(step):
        seen.append(step)
        return pictures

    for steps in (1, 2):
        done = train_decoder(
            vae, tmp_path, batches, seed=0, stop_at=float("inf"), adversarial=adversarial, encoder=encoder, steps=steps
        )
        assert done == steps
    assert seen == [0, 1]
    before = cpu_model.vae.state_dict()
    changed = {name for name, p in vae.state_dict().items() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"} | (
        {"encoder", "quant_conv"} if encoder else set()
    )
    assert not any(p.requires_grad for p in vae.parameters())
