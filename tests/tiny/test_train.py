"""The command that trains: its options, and a run of all stages with scenes that are rendered ahead."""

import json
import sys
from functools import partial

import pytest
import torch
from PIL import Image

import minip2p
from minip2p.io.files import shipped_weights
from minip2p.tiny import train, train_unet
from minip2p.tiny.judge import Judge
from minip2p.tiny.scenes import caption_words
from minip2p.tiny.sprites import Sprites
from minip2p.tiny.train import batch_sizes, decoder_stage, distil_stage, main


def run(monkeypatch, capsys, *options):
    """The exit status and what is printed on stderr."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, options)])
    return main(), capsys.readouterr().err


def changed_parameters(before, after):
    """The names of the parameters that differ. A step of the warm-up changes only small values in float16."""
    parameters = dict(after.named_parameters())
    return {name for name, p in before.named_parameters() if not torch.equal(p, parameters[name])}


def test_all_stages_in_one_run(ball_arrays, cpu_model, tmp_path, monkeypatch, capsys):
    """Of eight scenes: the decoder, the UNet and the judge are trained for a step or little more, and written."""
    monkeypatch.setattr(train, "fetch_sprites", lambda folder: None)
    monkeypatch.setattr(Sprites, "load", partial(Sprites, ball_arrays))
    monkeypatch.setattr(train, "partial", lambda load, path: load)
    monkeypatch.setattr(train, "train_decoder", partial(train.train_decoder, steps=2))
    monkeypatch.setattr(train, "distil", partial(train.distil, steps=1))
    monkeypatch.setattr(train, "train_judge", partial(train.train_judge, steps=1))
    monkeypatch.setattr(train_unet, "PREVIEW_PROMPTS", ("a cat",))
    out, judge_out, steps = tmp_path / "out", tmp_path / "judge-out", train_unet.trained_steps(shipped_weights("tiny"))
    options = ["--work", tmp_path, "--out", out, "--judge-out", judge_out, "--warm", shipped_weights("tiny")]
    options += ["--workers", 1, "--scenes", 8, "--batch", 2, "--steps", steps["unet"] + 1, "--directions"]
    options += ["--minutes", 5, "--decoder", 5, "--adversarial", 0.1, "--judge", 0.05]
    options += ["--distil", 0.5, "--distil-out", tmp_path / "fast"]
    status, error = run(monkeypatch, capsys, *options)
    assert status == 0, error
    trained = minip2p.load(out)
    assert json.loads((out / "minip2p.json").read_text())["_trained"] == steps | {"unet": steps["unet"] + 1}
    assert trained.text.known_words == set(caption_words(directions=True))
    changed = changed_parameters(cpu_model.vae, trained.vae)
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    assert changed_parameters(cpu_model.unet, trained.unet)
    student = minip2p.load(tmp_path / "fast")
    assert student.default_guidance == 1 and changed_parameters(trained.unet, student.unet)
    assert not changed_parameters(trained.vae, student.vae)
    assert changed_parameters(Judge.load().network, Judge.load(judge_out).network)
    assert Image.open(tmp_path / "unet/samples-last.png").width > 128
    assert {path.parent.name.partition("-")[0] for path in tmp_path.glob("*/checkpoint.safetensors")} == {
        "vae",
        "decoder",
        "unet",
        "distil",
        "judge",
    }


def test_a_decoder_that_fails_is_left_as_it_was(cpu_model, tmp_path, capsys):
    """The gradient is not finite: the training goes on with the VAE that there was."""
    options = type("Options", (), {"decoder": 1.0, "work": tmp_path, "seed": 0, "adversarial": 0.0, "encoder": False})
    vae = decoder_stage(options, cpu_model.vae, lambda step: torch.full((1, 3, 64, 64), torch.nan), float("inf"))
    assert vae is cpu_model.vae and "going on without it" in capsys.readouterr().out


def test_a_distillation_without_a_step_writes_no_student(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "distil", lambda teacher, *arguments, **options: (teacher.unet, 0))
    names = {"out": shipped_weights("tiny"), "work": tmp_path, "seed": 0, "distil_out": tmp_path / "fast"}
    store = type("Store", (), {"device": torch.device("cpu")})
    distil_stage(type("Options", (), names), store, 0.0, train.predict_with_maps, 2)
    assert "no student was written" in capsys.readouterr().out and not (tmp_path / "fast").exists()


@pytest.mark.parametrize("text, sizes", [("64", (64,)), ("512,256", (256, 512)), ("8", (8,))])
def test_batches_are_sorted(text, sizes):
    assert batch_sizes(text) == sizes


@pytest.mark.parametrize(
    "options, message",
    [
        (["--steps", "-3"], "--steps must be at least 1, not -3"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--minutes", "0"], "--minutes must be a number above 0, not 0"),
        (["--minutes", "-1"], "--minutes must be a number above 0, not -1"),
        (["--minutes", "nan"], "--minutes must be a number above 0, not nan"),
        (["--device", "cuda"], "torch finds no NVIDIA GPU; use --device cpu"),
        (["--decoder", "1", "--encoder"], "--encoder needs --workers: the latents on disk would not be those"),
        (
            ["--distil", "1", "--workers", "1", "--distil-out", "a", "--out", "./a"],
            "--distil-out a: is the folder of --out",
        ),
        (["--judge", "1"], "--judge needs --workers; on a CPU train the judge with python -m minip2p.tiny.judge_train"),
    ],
)
def test_what_cannot_be_trained_is_an_error(options, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, error = run(monkeypatch, capsys, "--work", tmp_path, *options)
    assert status == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("batch", ["100", "0", "many"])
def test_a_batch_that_is_no_multiple_is_refused(batch, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, capsys, "--batch", batch)
