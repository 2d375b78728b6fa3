"""What a command says before a long run: its time, and its memory."""

import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from command_line import PHOTO, run
from parity import OFFICIAL_UNETS, SD15_VAE
from torch.utils.flop_counter import FlopCounterMode

from minip2p.cli import estimate
from minip2p.config import UNetConfig, VAEConfig
from minip2p.errors import Notice
from minip2p.unet import UNet
from minip2p.vae import VAE


@torch.no_grad()
def counted_flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_the_work_is_that_which_torch_counts(cpu_model):
    """Of the model that ships: within a tenth for the UNet. The decoder's upsampling is cheaper than is counted."""
    c, width = cpu_model.components, cpu_model.unet.config.cross_attention_dim
    unet = counted_flops(lambda: cpu_model.unet(torch.zeros(1, 4, 16, 24), 5, torch.zeros(1, 77, width)))
    assert estimate.unet_flops(c, (16, 24)) == pytest.approx(unet, rel=0.1)
    decoder = counted_flops(lambda: cpu_model.vae.decode(torch.zeros(1, 4, 16, 24)))
    assert 1 <= estimate.decoder_flops(c, (16, 24)) / decoder < 1.3


@pytest.mark.parametrize(
    "family, teraflops", [("sd15", 0.80327344128), ("sd21", 2.14910574592), ("sdxl", 6.76123639808)]
)
def test_the_work_of_official_models(family, teraflops):
    """Teraflops of a row at the size of training, as torch's FlopCounterMode counts them for the same UNets."""
    with torch.device("meta"):
        config = UNetConfig.from_dict(OFFICIAL_UNETS[family])
        components = SimpleNamespace(unet=UNet(config), vae=VAE(VAEConfig.from_dict(SD15_VAE)))
    side = {"sd15": 64, "sd21": 96, "sdxl": 128}[family]
    assert estimate.unet_flops(components, (side, side)) / 1e12 == pytest.approx(teraflops, rel=1e-9)


def test_the_estimate_of_the_model_that_ships_is_right_within_a_factor_of_two(cpu_model, monkeypatch):
    """Both in the time of the processor, since the machine may be busy."""
    monkeypatch.setattr(estimate, "perf_counter", time.process_time)
    monkeypatch.setattr(estimate, "PROBE", 0.2)
    latents, context = torch.zeros(2, 4, 32, 32), torch.zeros(2, 77, cpu_model.unet.config.cross_attention_dim)
    with torch.inference_mode():
        cpu_model.unet(latents, 5, context)
        start = time.process_time()
        for _ in range(3):
            cpu_model.unet(latents, 5, context)
        seconds = (time.process_time() - start) / 6
    speed = estimate.measure_speed(cpu_model.components)
    expected = estimate.unet_flops(cpu_model.components, (32, 32)) / (estimate.EFFICIENCY * speed)
    assert 0.5 < expected / seconds < 2


def test_a_small_run_is_not_measured_and_a_long_one_is_named(cpu_model, monkeypatch, recwarn):
    c = cpu_model.components
    monkeypatch.setattr(estimate, "measure_speed", lambda components: pytest.fail("measured"))
    estimate.announce(c, 100, (16, 16), pictures=1, batch=2)
    monkeypatch.setattr(estimate, "measure_speed", lambda components: 1e9 / estimate.EFFICIENCY)
    estimate.announce(c, 0, (64, 64), pictures=0, batch=2)  # a sweep that is finished
    assert not recwarn.list
    flops = 100 * estimate.unet_flops(c, (64, 64)) + estimate.decoder_flops(c, (64, 64))
    with pytest.warns(
        Notice, match=f"will take about {flops / 60e9:.0f} minutes .*: 100 rows of the UNet at [0-9.]+ s; "
    ):
        estimate.announce(c, 100, (64, 64), pictures=1, batch=2)


def test_more_memory_than_the_machine_has_is_named(cpu_model, monkeypatch):
    monkeypatch.setattr(estimate, "memory_of_machine", lambda device: 1e9)
    monkeypatch.setattr(estimate, "measure_speed", lambda components: 1e15)
    with pytest.warns(Notice, match="this needs about 4 GB of memory, and there are 1 GB: smaller pictures"):
        estimate.announce(cpu_model.components, 1, (512, 512), pictures=1, batch=2)


def test_times_are_minutes_or_hours():
    assert [estimate.format_time(s) for s in (61, 1000, 5400, 2.5e6)] == [
        "1 minutes",
        "17 minutes",
        "1.5 hours",
        "694 hours",
    ]


@pytest.mark.parametrize(
    "arguments, rows, size, pictures, batch",
    [
        (("generate", "a cat", "--steps", 10), 20, (16, 16), 1, 2),
        (("generate", "a cat", "--count", 3, "--steps", 10, "--size", "64x128"), 60, (8, 16), 3, 2),
        (("generate", "a cat", "--steps", 10, "--guidance", 1), 10, (16, 16), 1, 1),
        (("edit", "a cat", "a dog", "a pig", "--steps", 10), 100, (16, 16), 5, 4),
        (("edit", "a cat", "a dog", "--steps", 10, "--no-compare"), 40, (16, 16), 2, 2),
        (("edit", "x.png", "a dog", "--prompt", "a cat", "--steps", 10, "--no-compare"), 60, (16, 16), 3, 2),
        (("invert", "x.png", "a cat", "--steps", 10, "--method", "null-text"), 320, (16, 16), 2, 2),
        (("invert", "x.png", "a cat", "--steps", 10, "--method", "virtual"), 20, (16, 16), 2, 2),
        (("invert", "x.png", "a cat", "--fast", "--size", "64x64"), 30, (8, 8), 2, 2),
        (("maps", "a cat", "--steps", 10), 30, (16, 16), 1, 2),
    ],
)
def test_each_command_counts_its_rows(cpu_model, monkeypatch, tmp_path, arguments, rows, size, pictures, batch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTO, tmp_path / "x.png")
    calls = []

    def stop(components, *plan, **options):
        calls.append((*plan, *options.values()))
        raise SystemExit(7)

    monkeypatch.setattr(estimate, "announce", stop)
    assert run(*arguments) == 7 and calls == [(rows, size, pictures, batch)]


def test_a_run_in_a_file_has_its_own_steps_and_size(cpu_model, monkeypatch, tmp_path):
    cpu_model.generate("a cat", steps=3, size=(64, 72)).save(tmp_path / "run.safetensors")
    calls = []
    monkeypatch.setattr(estimate, "announce", lambda components, rows, size, **options: calls.append((rows, size)))
    assert run("edit", tmp_path / "run.safetensors", "a dog", "--no-compare", "-o", tmp_path / "out") == 0
    assert calls == [(12, (8, 9))]
