"""`minip2p plan`, and `minip2p edit --tell`."""

import json

import pytest
import torch
from command_line import CAT, PHOTO, error_line, png_settings, run
from PIL import Image

import minip2p
from minip2p.cli import options
from minip2p.planner.plan import read_plan


@pytest.fixture(autouse=True)
def loaded(small_model, monkeypatch):
    """The commands get a small model without loading it."""
    monkeypatch.setattr(options, "load", lambda *_, **__: small_model)


def test_plan_prints_json_that_can_be_read(capsys):
    assert run("plan", "make the cat a tiger", "--caption", CAT) == 0
    assert read_plan(capsys.readouterr().out, CAT) == minip2p.plan("make the cat a tiger", CAT)


def test_tell_edits_as_the_plan_says(small_model, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert run("edit", CAT, "--tell", "move the cat to the left", "--steps", 3, "--no-compare", "-o", out) == 0
    printed = capsys.readouterr().out
    plan = read_plan(printed[: printed.index("\n}") + 2], CAT)
    assert plan.move == {"cat": (-0.25, 0)}
    prompt, _, settings = png_settings(out)
    assert prompt == CAT and settings["Move"] == "cat:-16,0"
    assert settings["Instruction"] == "move the cat to the left" and settings["Self"] == "0.8"
    run_of_plan = small_model.edit(CAT, plan, steps=3)
    told = small_model.edit(CAT, CAT, steps=3, move={"cat": (-16, 0)}, cross_replace=0.8, self_replace=0.8)
    assert torch.equal(run_of_plan.latents, told.latents)
    assert json.loads(printed[: printed.index("\n}") + 2])["kind"] == "move"


def test_tell_takes_photographs_and_files_of_runs(small_model, tmp_path, capsys):
    small_model.generate(CAT, steps=2).save(tmp_path / "run.safetensors")
    for source, rest in ((tmp_path / "run.safetensors", ()), (PHOTO, ("--prompt", CAT, "--steps", 2))):
        out = tmp_path / f"{source.stem}.png"
        assert run("edit", source, *rest, "--tell", "make the cat a tiger", "--no-compare", "-o", out) == 0
        assert png_settings(out)[0] == "a tiger on the beach"
    capsys.readouterr()


def test_the_pictures_of_a_colour_are_blended(tmp_path, capsys):
    out = tmp_path / "out.png"
    arguments = ("--tell", "make the car blue", "--steps", 2, "--no-compare", "-o", out)
    assert run("edit", "a red car on the street", *arguments) == 0
    assert '"local_blend": {' in capsys.readouterr().out and png_settings(out)[2]["Blend"] == "car:car"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "more fog"), "the following arguments are required: --caption"),
        (("plan", "", "--caption", CAT), "the instruction is a text with words"),
        (("plan", "remove the dog", "--caption", CAT), "'dog' is not in the caption 'a cat on the beach'"),
        (
            ("plan", "more fog", "--caption", CAT, "--by", "ollama"),
            "'ollama' is neither a folder nor the address of a s",
        ),
        (("plan", "more fog", "--caption", CAT, "--by-model", "x"), "--by-model: 'x' is a model of a server"),
        (("edit", CAT), "the following arguments are required: TARGET, or an instruction with --tell"),
        (("edit", CAT, "a dog", "--tell", "more fog"), "--tell makes the target from the instruction"),
        (("edit", CAT, "--tell", "more fog", "--cross", ".5"), "--cross is what the plan of --tell says"),
        (("edit", PHOTO, "--prompt", "", "--tell", "more fog"), "the caption is a text with words, not ''"),
        (("edit", CAT, "--tell", "remove the dog"), "'dog' is not in the caption"),
        (("edit", CAT, "a dog", "--by", "http://localhost/v1"), "--by is a planner for --tell, which is missing"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert message in error_line(capsys, *arguments)


@pytest.mark.parametrize(
    ("instruction", "caption"),
    [
        ("make the cat much bigger", CAT),
        ("add another cat on the left", CAT),
        ("remove the cat", CAT),
        ("more fog", "a cat on the beach in the fog"),
        ("paint the car blue", "a red car on the street"),
    ],
)
def test_the_command_edits_as_the_library_does(instruction, caption, small_model, tmp_path, capsys):
    file = tmp_path / "run.safetensors"
    source = small_model.generate(caption, steps=2)
    source.save(file)
    out = tmp_path / "out.png"
    assert run("edit", file, "--tell", instruction, "--no-compare", "-o", out) == 0
    capsys.readouterr()
    plan = minip2p.plan(instruction, caption)
    edited = Image.open(out).convert("RGB")
    assert edited.tobytes() == small_model.edit(small_model.open(file), plan).image.tobytes()
