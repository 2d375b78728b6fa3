"""The training of a model that follows instructions: its start, what it drops, its loss, resuming, and its folder."""

import json
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import minip2p
from minip2p.attention.contract import fused
from minip2p.config import SchedulerConfig
from minip2p.io.files import shipped_weights
from minip2p.sched import DDIMScheduler
from minip2p.tiny import train_instruct as module
from minip2p.tiny.loop import seeded_generator
from minip2p.tiny.pair_latents import PairBatch
from minip2p.tiny.train_instruct import InstructLoss, drop_conditions, instruct_unet, train_instruct, write_instruct
from minip2p.tiny.train_unet import UNET_CONFIG, denoising_loss
from minip2p.unet import UNet


@pytest.fixture
def origin(cpu_model):
    """The model that ships, with a small random UNet."""
    torch.manual_seed(0)
    unet = UNet(replace(UNET_CONFIG, block_out_channels=(8, 8, 8), norm_num_groups=4, attention_head_dim=2))
    return replace(cpu_model, components=replace(cpu_model.components, unet=unet.requires_grad_(False)))


def test_at_the_start_the_picture_changes_nothing(origin):
    unet, x, t = instruct_unet(origin), torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    context = torch.randn(2, 77, 128)
    expected = origin.unet(x, t, context, fused)
    assert torch.equal(unet(torch.cat([x, torch.randn(2, 4, 16, 16)], dim=1), t, context, fused), expected)
    assert unet.config.in_channels == 8 and not torch.equal(expected, torch.zeros_like(expected))


def test_conditions_are_dropped_as_in_the_published_trainer():
    """examples/instruct_pix2pix/train_instruct_pix2pix.py of diffusers: prompt_mask and image_mask of one random
    number."""
    n = 40_000
    source, token_ids = torch.ones(n, 1, 1, 1), torch.ones(n, 3, dtype=torch.long)
    pictures, ids = drop_conditions(source, token_ids, torch.zeros(3, dtype=torch.long), seeded_generator(1))
    number = torch.rand(n, generator=seeded_generator(1))
    prompt_mask = number < 2 * 0.05
    image_mask = 1 - ((number >= 0.05).long() * (number < 3 * 0.05).long())
    assert torch.equal(ids, torch.where(prompt_mask[:, None], 0, token_ids))
    assert torch.equal(pictures, image_mask[:, None, None, None] * source)
    shares = [
        float(((ids[:, 0] == a) & (pictures[:, 0, 0, 0] == b)).float().mean()) for a, b in ((0, 1), (0, 0), (1, 0))
    ]
    assert shares == pytest.approx([0.05, 0.05, 0.05], abs=0.005)


def test_the_loss_is_that_of_denoising_the_target_beside_the_source(origin, monkeypatch):
    """Nothing dropped: the UNet reads the noisy scaled target and the unscaled source."""
    monkeypatch.setattr(module, "DROP", 0.0)
    unet = instruct_unet(origin).requires_grad_(False)
    unet.conv_in.weight.normal_(generator=seeded_generator(1))
    source, target = torch.randn(2, 3, 4, 16, 16, generator=seeded_generator(2)).unbind()
    texts = ["a cat", "a red car", "a dog in the snow"]
    token_ids = torch.tensor([origin.text.prompt(text).ids for text in texts])
    loss = InstructLoss(origin)(unet, source, target, token_ids, (0, 5))
    context = origin.text(texts).tokens

    def denoise(x, t, ids):
        return unet(torch.cat([x, source], dim=1), t, context.to(x.dtype), fused), {}

    generator = seeded_generator(0, 5, 10)
    torch.rand(3, generator=generator)
    expected, _ = denoising_loss(
        denoise, origin.scheduler.alphas_cumprod, origin.vae.scale(target), token_ids, generator
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-2)  # bfloat16 where the CPU has it


class Pairs:
    """A source of random pairs, the same at each step; it notes which steps and ages were asked for."""

    def __init__(self):
        self.requests = []

    def batch(self, step, age, size):
        self.requests.append((step, age, size))
        generator = seeded_generator(step)
        latents = torch.randn(2, 2, 4, 16, 16, generator=generator)
        return PairBatch(*latents.unbind(), torch.randint(0, 100, (2, 77), generator=generator))


def train(origin, work, steps, source=None, **options):
    unet, done = train_instruct(origin, source or Pairs(), work, seed=0, steps=steps, **options)
    return unet.state_dict(), done


def test_a_killed_training_resumes_exactly(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cooldown", lambda position, length: 1.0)  # depends on the run's length
    uninterrupted, killed = Pairs(), Pairs()
    expected, done = train(origin, tmp_path / "a", 3, uninterrupted)
    train(origin, tmp_path / "b", 1, killed)
    resumed, resumed_steps = train(origin, tmp_path / "b", 3, killed)
    assert done == resumed_steps == 3 and killed.requests == uninterrupted.requests == [
        (0, 0, 32),
        (1, 32, 32),
        (2, 64, 32),
    ]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())
    first, second = (load_file(tmp_path / name / "checkpoint.safetensors") for name in "ab")
    assert first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())
    assert expected["conv_in.weight"][:, 4:].abs().max() > 0


def test_a_larger_batch_counts_for_several_steps(origin, tmp_path):
    source = Pairs()
    _, done = train(origin, tmp_path, 4, source, size=64)
    assert done == 4 and source.requests == [(0, 0, 64), (2, 64, 64)]


def test_a_model_that_predicts_v_or_reads_pictures_is_refused(origin, tmp_path):
    scheduler = DDIMScheduler(SchedulerConfig(prediction_type="v_prediction"))
    for change in ({"scheduler": scheduler}, {"unet": instruct_unet(origin)}):
        other = replace(origin, components=replace(origin.components, **change))
        with pytest.raises(ValueError, match="the model must predict noise and read nothing but its latents"):
            train(other, tmp_path, 1)


@pytest.fixture
def folder(origin, tmp_path):
    """The folder of a small trained model beside that which it comes from."""
    origin.save(tmp_path / "origin")
    unet, steps = train_instruct(origin, Pairs(), tmp_path / "work", seed=0, steps=1)
    torch.nn.init.normal_(unet.conv_in.weight, generator=seeded_generator(3))
    write_instruct(tmp_path / "instruct", origin, unet, steps, tmp_path / "origin")
    return tmp_path / "instruct"


def test_the_folder_has_the_unet_alone_and_warms_another_training(folder, origin):
    assert sorted(path.name for path in folder.iterdir()) == ["minip2p.json", "model_index.json", "scheduler", "unet"]
    fields = json.loads((folder / "minip2p.json").read_text())
    assert fields["parts_from"] == "origin" and {"turn", "snow"} < set(fields["words"])
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    loaded = minip2p.load(folder)
    weights, done = train(origin, folder.parent / "warm", 1, warm_start=folder)
    assert done == 1 and all(torch.equal(t, loaded.unet.state_dict()[name]) for name, t in weights.items())


def test_what_save_writes_is_complete_and_diffusers_pipeline_gives_the_same_picture(folder):
    """Latents after 4 steps in float32, to 1e-3 of their standard deviation."""
    pipe = minip2p.load(folder)
    pipe.save(folder.parent / "complete")
    noise = torch.randn(1, 4, 16, 16, generator=seeded_generator(1))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    run = pipe.instruct(picture, "make it snow", latents=noise, steps=4, guidance_scale=4.0, image_guidance_scale=1.5)
    theirs = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(folder.parent / "complete")
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "make it snow",
        picture,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=4.0,
        image_guidance_scale=1.5,
        output_type="latent",
    ).images
    difference = (run.latents[-1:] - expected).std() / expected.std()
    assert float(difference) < 1e-3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--batch", "48"], "--batch must be a multiple of 32, not 48"),
        (["--out", str(shipped_weights("tiny"))], "is the folder of --model, which would be overwritten"),
        (["--steps", "-3"], "--steps must be at least 1, not -3"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--minutes", "0"], "--minutes must be a number above 0, not 0"),
        (["--minutes", "-1"], "--minutes must be a number above 0, not -1"),
        (["--minutes", "nan"], "--minutes must be a number above 0, not nan"),
        (["--workers", "-1"], "--workers must be at least 0"),
        (["--data", "nowhere"], "nowhere: has no data/*.parquet"),
        (["--model", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["train_instruct", "--out", str(tmp_path / "out"), "--work", str(tmp_path), *arguments]
    )
    assert module.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
