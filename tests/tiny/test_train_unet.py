"""The training of the UNet and the text encoder: its loss by hand, its batches, a warm start and the final decay."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from minip2p.io.files import shipped_weights
from minip2p.sched import DDIMScheduler
from minip2p.tiny.batches import Batch, draw_captions
from minip2p.tiny.export import trained_steps
from minip2p.tiny.grounding import SLOTS
from minip2p.tiny.loop import seeded_generator
from minip2p.tiny.train_unet import (
    SCHEDULER_CONFIG,
    UNET_CONFIG,
    Denoiser,
    UNetRun,
    denoising_loss,
    smallest_fast_batch,
    stratified_timesteps,
    time_step,
    train_unet,
)


def test_stratified_timesteps_are_one_from_each_part():
    t = stratified_timesteps(10, 1000, seeded_generator(0))
    assert (t // 100).tolist() == list(range(10))


def test_the_loss_is_weighted_by_one_over_root_snr():
    """w = 1 / √SNR times the squared error, for a network that always predicts zero."""
    scheduler, x0 = DDIMScheduler(SCHEDULER_CONFIG), torch.zeros(4, 4, 2, 2)
    alphas_cumprod = scheduler.alphas_cumprod

    def predict_zero(x, t, token_ids):
        torch.testing.assert_close(x, scheduler.add_noise(x0, noise, t))
        return torch.zeros_like(x), {}

    generator = seeded_generator(3)
    t = stratified_timesteps(4, 1000, generator)
    noise = torch.randn(x0.shape, generator=generator)
    loss, maps = denoising_loss(predict_zero, alphas_cumprod, x0, torch.zeros(4, 77), seeded_generator(3))
    weights = [((1 - alpha) / alpha) ** 0.5 for alpha in alphas_cumprod[t].tolist()]
    expected = [weight * float(eps.square().mean()) for weight, eps in zip(weights, noise, strict=True)]
    assert float(loss) == pytest.approx(sum(expected) / 4, rel=1e-5) and maps == {}


def test_the_denoiser_returns_the_maps_of_all_cross_attentions():
    torch.manual_seed(0)
    denoiser = Denoiser()
    with torch.no_grad():
        eps, maps = denoiser(torch.randn(2, 4, 16, 16), torch.tensor([1, 500]), torch.zeros(2, 77, dtype=torch.long))
    assert eps.shape == (2, 4, 16, 16)
    assert list(maps) == [site for site in denoiser.unet.sites if site.cross]
    for site, probs in maps.items():
        assert probs.shape == (2, 4, (16 // site.stride) ** 2, 77)
        torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:-1]), rtol=0, atol=1e-5)


def test_a_tenth_of_the_captions_is_empty_and_directions_come_on_request():
    _, captions = draw_captions(0, 1, torch.arange(600))
    assert 0.06 < sum(caption == "" for caption in captions) / 600 < 0.14
    assert not any("facing" in caption for caption in captions)
    _, captions = draw_captions(0, 1, torch.arange(100), directions=True)
    assert any("facing left" in caption for caption in captions) and any("facing right" in c for c in captions)


def test_the_smallest_batch_that_is_nearly_as_fast_is_taken():
    """1000, 1900 and 2000 pictures a second: 128 is within a tenth of the best. 512 does not fit into memory."""
    tried = []

    def seconds(size):
        tried.append(size)
        if size >= 512:
            raise torch.cuda.OutOfMemoryError
        return size / {64: 1000, 128: 1900, 256: 2000}[size]

    assert smallest_fast_batch((64, 128, 256, 512, 1024), seconds) == 128
    assert tried == [64, 128, 256, 512]
    with pytest.raises(ValueError, match="a batch of 512 pictures does not fit"):
        smallest_fast_batch((512,), seconds)


def test_a_step_is_timed_with_its_gradients_after_a_warm_up():
    p = torch.ones(1, requires_grad=True)
    assert time_step(lambda: 2 * p.sum(), torch.device("cpu"), repeats=3) >= 0
    assert p.grad.item() == 8  # four steps, the first of which does not count


@pytest.fixture
def small_unet(monkeypatch):
    config = replace(UNET_CONFIG, block_out_channels=(8, 8, 8), norm_num_groups=4, attention_head_dim=2)
    monkeypatch.setattr("minip2p.tiny.train_unet.UNET_CONFIG", config)


class Scenes:
    """A source of random batches, the same at each step; it notes which sizes and ages were asked for."""

    def __init__(self):
        self.requests = []

    def make(self, size, seed):
        generator = seeded_generator(seed)
        slots = torch.full((size, 77), -1)
        slots[:, 1] = 0
        return Batch(
            torch.randn(size, 4, 16, 16, generator=generator),
            torch.rand(size, SLOTS, 16, 16, generator=generator),
            torch.randint(0, 100, (size, 77), generator=generator),
            slots,
        )

    def batch(self, step, age, size):
        self.requests.append((step, age, size))
        return self.make(size, step)

    def validation(self):
        return self.make(2, 999)

    def scaling_factor(self):
        return 1.0


def run_unet(work, source, steps, **options):
    """Trains for `steps` steps in all, from nothing. What was written: (folder, steps, the weights) each time."""
    written = []

    def write(folder, denoiser, done):
        written.append((folder, done, {name: p.detach().clone() for name, p in denoiser.named_parameters()}))

    run = UNetRun(work, work / "out", 0, steps, stop_at=float("inf"), **({"warm_start": None} | options))
    train_unet(run, source, write)
    return written


def test_a_warm_start_takes_the_weights_that_ship(tmp_path, cpu_model):
    """With no step left to train, what is written is the weights that it started from: first as a preview."""
    weights = shipped_weights("tiny")
    written = run_unet(tmp_path, Scenes(), 0, warm_start=weights)
    steps = trained_steps(weights)["unet"]
    assert [(folder, done) for folder, done, _ in written] == [(tmp_path / "preview", steps), (tmp_path / "out", steps)]
    for _, _, trained in written:
        for part, module in (("unet", cpu_model.unet), ("text", cpu_model.text.encoders["text_encoder"])):
            assert all(torch.equal(p, trained[f"{part}.{name}"]) for name, p in module.named_parameters())


def test_a_killed_run_goes_on_with_the_same_batches(tmp_path, small_unet):
    uninterrupted, killed = Scenes(), Scenes()
    expected = run_unet(tmp_path / "a", uninterrupted, 2, batches=(2,))
    run_unet(tmp_path / "b", killed, 1, batches=(2,))
    resumed = run_unet(tmp_path / "b", killed, 2, batches=(2,))
    assert killed.requests == uninterrupted.requests == [(0, 0, 2), (1, 64, 2)]
    assert resumed[0][1] == 1  # the preview at the start is of the checkpoint
    assert all(torch.equal(p, resumed[-1][2][name]) for name, p in expected[-1][2].items())


def test_of_several_batches_one_is_tried_and_taken(tmp_path, small_unet):
    scenes = Scenes()
    run_unet(tmp_path, scenes, 1, batches=(1, 2))
    assert [size for _, _, size in scenes.requests[:8]] == [1] * 4 + [2] * 4
    assert len(scenes.requests) == 9 and {step for step, _, _ in scenes.requests} == {0}


@pytest.mark.parametrize("average_is_better", [True, False])
def test_after_a_decay_the_better_of_average_and_weights_is_written(
    average_is_better, tmp_path, small_unet, monkeypatch, capsys
):
    """By the loss on the validation's scenes, of which the source has two."""
    losses = []

    def loss(denoiser, alphas_cumprod, x0, token_ids, generator):
        losses.append(len(x0))
        value = denoising_loss(denoiser, alphas_cumprod, x0, token_ids, generator)
        if torch.is_grad_enabled():
            return value
        return torch.tensor(2.0 if (len(losses) == 2) == average_is_better else 1.0), value[1]  # the weights first

    monkeypatch.setattr("minip2p.tiny.train_unet.denoising_loss", loss)
    _, (_, _, written) = run_unet(tmp_path, Scenes(), 1, batches=(1,), decay=True)
    assert losses == [1, 2, 2]
    checkpoint = load_file(tmp_path / "unet/checkpoint.safetensors")
    prefix = "ema." if average_is_better else "model."
    assert all(torch.equal(p, checkpoint[prefix + name]) for name, p in written.items())
    assert "validation loss: " in capsys.readouterr().out
