"""The training loop: exact resumption, warm starts, frozen parts, learning rates and the moving average."""

import json
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.optim import AdamW

from minip2p.tiny.loop import Training, cooldown, inverse_root, is_matrix, seeded_generator
from minip2p.tiny.muon import Muon
from minip2p.tiny.train_unet import Denoiser


def train_convolution(folder, steps, warm=False, seed=0, name="conv"):
    """Trains a convolution for a few steps.

    It is in channels_last, so that the moments must be restored in that memory format as well. Muon trains its weight
    and AdamW its bias; under the name of a first layer ("conv_in") AdamW trains both.
    """
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict({name: nn.Conv2d(3, 4, 3)})).to(memory_format=torch.channels_last)
    training = Training(
        module,
        folder,
        learning_rate=lambda step: 0.1 * inverse_root(step),
        steps=steps,
        ema_decay=0.9,
        seed=seed,
    )
    if warm:
        training.warm_start({f"{name}.weight": torch.ones(4, 3, 3, 3), f"{name}.bias": torch.ones(4)}, 50)

    def loss(step):
        return (module(torch.randn(2, 3, 5, 5, generator=seeded_generator(7, step))) - 1).square().mean()

    training.run(loss)
    return training


@pytest.mark.parametrize("layer, optimizers", [("conv", [AdamW, Muon]), ("conv_in", [AdamW])])
@pytest.mark.parametrize("warm, first", [(False, 0), (True, 50)])
def test_a_killed_training_resumes_exactly(warm, first, layer, optimizers, tmp_path):
    uninterrupted = train_convolution(tmp_path / "uninterrupted", first + 6, warm=warm, name=layer)
    assert [type(optimizer) for optimizer in uninterrupted.optimizers] == optimizers
    train_convolution(tmp_path / "killed", first + 3, warm=warm, name=layer)
    resumed = train_convolution(tmp_path / "killed", first + 6, warm=warm, name=layer)
    for name, p in uninterrupted.parameters.items():
        assert torch.equal(p, resumed.parameters[name])
        assert torch.equal(uninterrupted.average[name], resumed.average[name])
        assert not torch.equal(p, uninterrupted.average[name])


def test_a_checkpoint_of_another_seed_is_an_error(tmp_path):
    train_convolution(tmp_path, 2)
    with pytest.raises(ValueError, match="made with seed 0: resume with that seed, or use a new folder"):
        train_convolution(tmp_path, 4, seed=1)


def test_the_learning_rate_rises_over_200_steps(tmp_path):
    training = Training(nn.Linear(1, 1), tmp_path, learning_rate=lambda step: 2.0, steps=1, ema_decay=0.9)
    training.start = 1000
    for age, expected in ((0, 2 / 200), (99, 1.0), (199, 2.0), (200, 2.0), (10_000, 2.0)):
        training.step = 1000 + age
        assert training.current_learning_rate() == pytest.approx(expected)


def test_a_warm_start_continues_the_step_count_with_a_new_warm_up(tmp_path):
    """Its weights become the parameters and their average. The first step of a fresh AdamW has the size of the learning
    rate, which is a 200th of what `learning_rate` returns for the step at which it starts."""
    torch.manual_seed(0)
    module, weights = nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    training = Training(module, tmp_path, learning_rate=float, steps=1001, ema_decay=0.9)
    training.warm_start(weights, 1000)
    assert torch.equal(module.weight, weights["weight"]) and torch.equal(training.average["weight"], weights["weight"])
    training.run(lambda step: module.bias.sum())
    assert training.step == 1001
    assert module.bias.tolist() == pytest.approx([-1000 / 200] * 2)
    assert training.average["bias"].tolist() == pytest.approx([-1000 / 200 * (1 - 2 / 11)] * 2)  # young: decay 2/11
    resumed = Training(nn.Linear(3, 2), tmp_path, learning_rate=float, steps=1003, ema_decay=0.9)
    resumed.resume()
    assert (resumed.step, resumed.start) == (1001, 1000)
    (adamw,) = (optimizer for optimizer in resumed.optimizers if isinstance(optimizer, AdamW))
    assert {float(state["step"]) for state in adamw.state.values()} == {1.0}


def test_a_frozen_part_stays_at_its_average_while_the_rest_trains(tmp_path):
    """The loss freezes it at step 3 of 6, as it does the VAE's encoder. It stays frozen after a kill."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    weights = []  # of the frozen part, at each step

    def run(steps):
        training = Training(module, tmp_path, learning_rate=lambda step: 0.1, steps=steps, ema_decay=0.9)

        def loss(step):
            if step >= 3 and module[0].weight.requires_grad:
                training.freeze(module[0])
            weights.append(module[0].weight.detach().clone())
            return (module(torch.randn(2, 3, generator=seeded_generator(step))) - 1).square().mean()

        training.run(loss)
        return training

    run(4)
    module[0].requires_grad_(True)
    training = run(6)
    assert not torch.equal(weights[2], weights[3]) and not torch.equal(weights[3], start["0.weight"])
    assert torch.equal(weights[3], weights[5]) and torch.equal(training.average["0.weight"], weights[5])
    assert not torch.equal(training.average["1.weight"], module[1].weight)


def test_muon_trains_the_matrices_and_adamw_the_rest():
    parameters = dict(Denoiser().named_parameters())
    adamw_matrices = {name for name, p in parameters.items() if p.ndim > 1 and not is_matrix(name, p)}
    layers = "conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"
    assert adamw_matrices == {
        *(f"unet.{layer}.weight" for layer in layers),
        *(name for name in parameters if "embeddings" in name),
    }
    assert not any(is_matrix(name, p) for name, p in parameters.items() if p.ndim == 1)


def test_a_larger_batch_counts_for_more_steps(tmp_path):
    """Four times the recipe's batch: each step counts for four, at twice the learning rate, and the average forgets as
    much as in four steps of the recipe."""
    module = nn.Sequential(OrderedDict(conv_in=nn.Conv2d(1, 1, 1, bias=False)))
    training = Training(module, tmp_path, learning_rate=lambda step: 0.1, steps=800, ema_decay=0.99, stride=4)
    steps, rates, weights = [], [], []

    def loss(step):
        steps.append(step)
        rates.append(training.current_learning_rate())
        weights.append(training.average["conv_in.weight"].item())
        return module.conv_in.weight.sum()

    training.run(loss)
    assert steps == list(range(0, 800, 4)) and training.step == 800 and training.age == 200
    assert rates[0] == pytest.approx(0.2 / 200) and rates[-1] == pytest.approx(0.2)
    (state,) = training.optimizers[0].state.values()
    assert float(state["step"]) == 200
    moved = (training.average["conv_in.weight"].item() - weights[-1]) / (module.conv_in.weight.item() - weights[-1])
    assert moved == pytest.approx(1 - 201 / 210, rel=1e-3)  # a young average: 201 / 210 < 0.99⁴
    resumed = Training(module, tmp_path, learning_rate=lambda step: 0.1, steps=808, ema_decay=0.99, stride=2)
    resumed.run(lambda step: module.conv_in.weight.sum())
    assert resumed.step == 808


@pytest.mark.parametrize("preview_every, previews", [(2, [2, 4]), (None, [1, 2, 3, 4, 5])])
def test_previews_come_every_so_many_steps_or_with_every_checkpoint(preview_every, previews, tmp_path):
    training = Training(nn.Linear(1, 1), tmp_path, learning_rate=lambda step: 0.1, steps=5, ema_decay=0.9)
    steps = []

    def preview():
        with safe_open(training.checkpoint, "pt") as file:
            steps.append(int(file.metadata()["step"]))

    training.run(
        lambda step: training.module.weight.sum(), preview=preview, preview_every=preview_every, save_every=-1.0
    )
    assert steps == previews


def test_within_averaged_the_module_has_the_average(tmp_path):
    training = train_convolution(tmp_path, 3)
    weights, average = training.module.conv.weight.detach().clone(), training.average["conv.weight"].clone()
    assert not torch.equal(weights, average)
    with training.averaged():
        assert torch.equal(training.module.conv.weight, average)
    assert torch.equal(training.module.conv.weight, weights) and torch.equal(training.average["conv.weight"], average)


def test_the_log_has_the_mean_loss_of_fifty_steps(tmp_path):
    training = Training(nn.Linear(1, 1), tmp_path, learning_rate=lambda step: 0.0, steps=100, ema_decay=0.9)
    training.run(lambda step: training.module.weight.sum() * 0 + step)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(50, 24.5), (100, 74.5)]


def test_a_gradient_that_is_not_finite_stops_the_training(tmp_path):
    module = nn.Linear(1, 1)
    training = Training(module, tmp_path, learning_rate=lambda step: 0.1, steps=2, ema_decay=0.9)
    with pytest.raises(FloatingPointError, match="step 0"):
        training.run(lambda step: module(torch.full((1, 1), float("nan"))).sum())


def test_the_learning_rate_factors_by_hand():
    assert cooldown(0, 100) == cooldown(70, 100) == 1 and cooldown(100, 100) == 0
    assert cooldown(85, 100) == pytest.approx(0.5) and cooldown(101, 100) == 0 and cooldown(9, float("inf")) == 1
    assert inverse_root(0) == inverse_root(1000) == 1
    assert inverse_root(11_999, plateau=3000) == pytest.approx(0.5)


def test_generators_with_swapped_seeds_differ():
    assert torch.rand(1, generator=seeded_generator(0, 1)) != torch.rand(1, generator=seeded_generator(1, 0))


def test_gradients_are_clipped_and_a_young_average_is_close(tmp_path):
    """A gradient of norm 1000 is clipped to 1, as AdamW's first moment shows. After one step the average has moved
    1 − 2/11 of the way, although ema_decay is 0.9."""
    module = nn.Sequential(OrderedDict(conv_in=nn.Conv2d(1, 1, 1, bias=False)))
    with torch.no_grad():
        module.conv_in.weight.zero_()
    training = Training(module, tmp_path, learning_rate=lambda step: 0.1, steps=1, ema_decay=0.9)
    training.run(lambda step: 1000 * module.conv_in.weight.sum())
    (state,) = training.optimizers[0].state.values()
    assert state["exp_avg"].item() == pytest.approx(0.1, rel=1e-3)  # (1 − β₁) · 1
    weight, average = module.conv_in.weight.item(), training.average["conv_in.weight"].item()
    assert weight < 0 and average == pytest.approx((1 - 2 / 11) * weight, rel=1e-4)
