"""The trainer: exact resumption, its losses, and the folder that it writes."""

import argparse
import json
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.optim import AdamW

import minip2p
from minip2p.attention.contract import fused
from minip2p.config import SchedulerConfig, UNetConfig, VAEConfig
from minip2p.io.files import shipped_weights
from minip2p.io.tensors import write_tensors
from minip2p.sched import DDIMScheduler
from minip2p.tiny import train
from minip2p.tiny.export import export_model, make_text_encoder
from minip2p.tiny.loop import Training, cooldown, generator, inverse_root, is_matrix
from minip2p.tiny.muon import Muon
from minip2p.unet import UNet
from minip2p.vae import VAE


def small_training(folder, steps, warm=False, seed=0, name="conv"):
    """A few steps of a convolution in channels_last, whose moments must come back in that memory format too: its weight
    is Muon's, its bias AdamW's; or both AdamW's, under the name of a first layer."""
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict({name: nn.Conv2d(3, 4, 3)})).to(memory_format=torch.channels_last)
    training = Training(module, folder, rate=lambda step: 0.1 * inverse_root(step), steps=steps, ema=0.9, seed=seed)
    if warm:
        training.begin({f"{name}.weight": torch.ones(4, 3, 3, 3), f"{name}.bias": torch.ones(4)}, 50)

    def loss(step):
        return (module(torch.randn(2, 3, 5, 5, generator=generator(7, step))) - 1).square().mean()

    training.run(loss)
    return training


@pytest.mark.parametrize("name, optimizers", [("conv", [AdamW, Muon]), ("conv_in", [AdamW])])
@pytest.mark.parametrize("warm, first", [(False, 0), (True, 50)])
def test_a_killed_training_goes_on_exactly(warm, first, name, optimizers, tmp_path):
    whole = small_training(tmp_path / "whole", first + 6, warm=warm, name=name)
    assert [type(optimizer) for optimizer in whole.optimizers] == optimizers
    small_training(tmp_path / "killed", first + 3, warm=warm, name=name)
    resumed = small_training(tmp_path / "killed", first + 6, warm=warm, name=name)
    for name, p in whole.named.items():
        assert torch.equal(p, resumed.named[name])
        assert torch.equal(whole.average[name], resumed.average[name])
        assert not torch.equal(p, whole.average[name])


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    small_training(tmp_path, 2)
    with pytest.raises(ValueError, match="made with seed 0: go on with it, or in a new folder"):
        small_training(tmp_path, 4, seed=1)


def test_the_learning_rate_rises_over_200_steps_and_no_further(tmp_path):
    training = Training(nn.Linear(1, 1), tmp_path, rate=lambda step: 2.0, steps=1, ema=0.9)
    training.start = 1000
    for age, expected in ((0, 2 / 200), (99, 1.0), (199, 2.0), (200, 2.0), (10_000, 2.0)):
        training.step = 1000 + age
        assert training.rate_now() == pytest.approx(expected)


def test_a_warm_start_counts_on_and_rises_anew(tmp_path):
    """The weights given are the parameters and their average; the first step of a fresh AdamW has the size of the
    learning rate, which is a 200th of what `rate` says at the step counted on."""
    torch.manual_seed(0)
    module, landed = nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    training = Training(module, tmp_path, rate=lambda step: float(step), steps=1001, ema=0.9)
    training.begin(landed, 1000)
    assert torch.equal(module.weight, landed["weight"]) and torch.equal(training.average["weight"], landed["weight"])
    training.run(lambda step: module.bias.sum())
    assert training.step == 1001
    assert module.bias.tolist() == pytest.approx([-1000 / 200] * 2)
    assert training.average["bias"].tolist() == pytest.approx([-1000 / 200 * (1 - 2 / 11)] * 2)  # young: decay 2/11
    resumed = Training(nn.Linear(3, 2), tmp_path, rate=lambda step: float(step), steps=1003, ema=0.9)
    resumed.resume()
    assert (resumed.step, resumed.start) == (1001, 1000)
    (adamw,) = (o for o in resumed.optimizers if isinstance(o, AdamW))
    assert {float(state["step"]) for state in adamw.state.values()} == {1.0}


def test_a_frozen_part_stays_at_its_average_while_the_rest_trains_on(tmp_path):
    """Frozen at step 3 of 6, by the loss itself, as the VAE's encoder is; also after a kill."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    start, seen = {name: p.detach().clone() for name, p in module.named_parameters()}, []

    def run(steps):
        training = Training(module, tmp_path, rate=lambda step: 0.1, steps=steps, ema=0.9)

        def loss(step):
            if step >= 3 and module[0].weight.requires_grad:
                training.freeze(module[0])
            seen.append(module[0].weight.detach().clone())
            return (module(torch.randn(2, 3, generator=generator(step))) - 1).square().mean()

        training.run(loss)
        return training

    run(4)
    module[0].requires_grad_(True)
    training = run(6)
    assert not torch.equal(seen[2], seen[3]) and not torch.equal(seen[3], start["0.weight"])
    assert torch.equal(seen[3], seen[5]) and torch.equal(training.average["0.weight"], seen[5])
    assert not torch.equal(training.average["1.weight"], module[1].weight)


def test_muon_trains_matrices_and_adamw_the_rest():
    denoiser = train.Denoiser()
    others = {name for name, p in denoiser.named_parameters() if p.ndim > 1 and not is_matrix(name, p)}
    assert others == {
        *(
            f"unet.{part}.weight"
            for part in ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
        ),
        *(name for name, _ in denoiser.named_parameters() if "embeddings" in name),
    }
    assert not any(is_matrix(name, p) for name, p in denoiser.named_parameters() if p.ndim == 1)


def test_a_warm_start_takes_up_what_has_landed(tmp_path):
    """Both trainings, from the weights that ship and with no step left to do: what they hand on is these weights."""
    landed, model, written = shipped_weights("tiny"), minip2p.load(), []
    steps = train.trained_steps(landed)
    vae, done = train.train_vae(tmp_path, 0, None, 0.0, landed)
    assert done == steps["vae"] and all(torch.equal(p, vae.get_parameter(n)) for n, p in model.vae.named_parameters())
    options = argparse.Namespace(work=tmp_path, out=tmp_path / "out", seed=0, steps=0, warm=landed)

    class Latents:
        def scale(self):
            return 1.0

    train.train_denoiser(options, Latents(), lambda *given: written.append(given), 0.0)
    ((out, denoiser, done),) = written
    assert (out, done) == (options.out, steps["unet"])
    assert all(torch.equal(p, denoiser.unet.get_parameter(n)) for n, p in model.unet.named_parameters())
    assert all(
        torch.equal(p, denoiser.text.get_parameter(n))
        for n, p in model.text.encoders["text_encoder"].named_parameters()
    )


def test_a_checkpoint_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors({"x": torch.ones(2)}, path, {"step": "1"})
    with pytest.raises(AttributeError):
        write_tensors({"x": None}, path)
    with safe_open(path, "pt") as f:
        assert f.metadata() == {"step": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_gradient_that_is_not_finite_stops_the_training(tmp_path):
    module = nn.Linear(1, 1)
    training = Training(module, tmp_path, rate=lambda step: 0.1, steps=2, ema=0.9)
    with pytest.raises(FloatingPointError, match="step 0"):
        training.run(lambda step: module(torch.full((1, 1), float("nan"))).sum())


def test_learning_rates():
    assert cooldown(0, 100) == cooldown(70, 100) == 1 and cooldown(100, 100) == 0
    assert cooldown(85, 100) == pytest.approx(0.5)
    assert inverse_root(0) == inverse_root(1000) == 1
    assert inverse_root(11_999, level=3000) == pytest.approx(0.5)


def test_generators_of_swapped_seeds_differ():
    assert torch.rand(1, generator=generator(0, 1)) != torch.rand(1, generator=generator(1, 0))


def test_stratified_times_are_one_from_each_part():
    t = train.stratified_times(10, 1000, generator(0))
    assert (t // 100).tolist() == list(range(10))


def test_loss_weighted_by_one_over_root_snr():
    """w = 1 / √SNR times the squared error, for a network that always answers zero."""

    class Zero(nn.Module):
        def text(self, input_ids):
            return type("Output", (), {"last_hidden_state": None})

        def unet(self, x, t, context, attend):
            return torch.zeros_like(x)

    sched, x0 = DDIMScheduler(train.SCHEDULER_CONFIG), torch.zeros(4, 4, 2, 2)
    loss = train.denoising_loss(Zero(), sched, x0, torch.zeros(4, 77), generator(3), fused)
    source = generator(3)
    t = train.stratified_times(4, 1000, source)
    noise = torch.randn(x0.shape, generator=source)
    abar = sched.alphas_cumprod[t].tolist()
    expected = [float(noise[i].square().mean()) * ((1 - abar[i]) / abar[i]) ** 0.5 for i in range(4)]
    assert float(loss) == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_gradients_l1_sees_edges_and_not_levels():
    a = torch.zeros(1, 3, 8, 8)
    assert train.gradients_l1(a, a + 1) == 0
    edge = a.clone()
    edge[..., 4:] = 1
    assert train.gradients_l1(a, edge, scales=1) == pytest.approx(1 / 7)


def test_more_scenes_are_drawn_from_as_training_goes_on():
    sizes = [train.Latents.size(None, step) for step in (0, 383, 384, 10**6)]
    assert sizes == [3 * train.CHUNK, 3 * train.CHUNK, 4 * train.CHUNK, train.LATENTS]


def test_the_exported_folder_opens_with_the_same_weights_in_float16(tmp_path):
    torch.manual_seed(0)
    width, levels = 8, 2
    unet = UNet(
        UNetConfig(
            sample_size=8,
            block_out_channels=(8,) * levels,
            layers_per_block=1,
            cross_attention_dim=width,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            norm_num_groups=4,
        )
    )
    vae = VAE(VAEConfig(block_out_channels=(8,), norm_num_groups=4))
    text, done = make_text_encoder(width), {"vae": 3, "unet": 5}
    export_model(
        tmp_path, vae, unet, text, SchedulerConfig(steps_offset=1), scaling_factor=0.25, trained={"vae": 3, "unet": 5}
    )
    model = minip2p.load(tmp_path)
    assert model.vae.config.scaling_factor == 0.25
    assert train.trained_steps(tmp_path) == done
    assert model.guidance_scale == json.loads((tmp_path / "minip2p.json").read_text())["guidance"]
    for ours, theirs in ((unet, model.unet), (vae, model.vae), (text, model.text.encoders["text_encoder"])):
        loaded = theirs.state_dict()
        assert loaded.keys() == ours.state_dict().keys()
        assert all(torch.equal(t.half().float(), loaded[name]) for name, t in ours.state_dict().items())


def test_a_tenth_of_the_captions_is_empty():
    _, captions = train.draw_captions(0, 1, torch.arange(600))
    assert 0.06 < sum(caption == "" for caption in captions) / 600 < 0.14


def test_latents_are_scaled_to_a_deviation_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHUNK", 256)
    latents = train.Latents(tmp_path, None, 0, None)
    latents.chunks = [{"latents": 4 * torch.randn(256, 4, 2, 2, generator=generator(1))}]
    assert latents.scale() == pytest.approx(0.25, rel=0.05)


def test_kl_of_a_gaussian_by_hand():
    """mean 2, deviation e: ½ (4 + e² − 1 − 2) = ½ (1 + e²), times its weight."""

    class Still(nn.Module):
        def encode(self, x):
            return torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), torch.e)

        def decode(self, z):
            return torch.zeros(1, 3, 16, 16)

    x = torch.zeros(1, 3, 16, 16)
    loss = train.vae_loss(Still(), x, generator(0), kl_weight=0.5)
    assert loss.item() == pytest.approx(0.25 * (1 + torch.e**2), rel=1e-5)
    assert train.vae_loss(Still(), x, generator(0)).item() == pytest.approx(0.5e-5 * (1 + torch.e**2), rel=1e-5)


def test_gradients_are_clipped_and_a_young_average_is_near(tmp_path):
    """A gradient of norm 1000 moves AdamW as far as one of norm 1 would be recorded: its first moment says which. After
    one step the average has gone 1 − 2/11 of the way, though ema is .9."""
    module = nn.Sequential(OrderedDict(conv_in=nn.Conv2d(1, 1, 1, bias=False)))
    with torch.no_grad():
        module.conv_in.weight.zero_()
    training = Training(module, tmp_path, rate=lambda step: 0.1, steps=1, ema=0.9)
    training.run(lambda step: 1000 * module.conv_in.weight.sum())
    (state,) = training.optimizers[0].state.values()
    assert state["exp_avg"].item() == pytest.approx(0.1, rel=1e-3)  # (1 − β₁) · 1
    moved, average = module.conv_in.weight.item(), training.average["conv_in.weight"].item()
    assert moved < 0 and average == pytest.approx((1 - 2 / 11) * moved, rel=1e-4)
