"""The command line: what it writes, what stands in its PNGs, and one line for each mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import minip2p
from minip2p import LocalBlend
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.cli import commands, demo, experiments, main, options
from minip2p.io import png, viz
from minip2p.sampling import metadata
from minip2p.sampling.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
TINY = ROOT / "weights" / "tiny"
WEIGHTS = "diffusion_pytorch_model.safetensors"
CAT, TIGER = "a cat on the beach", "a tiger on the beach"
RENDER = "tests/data/renders/00.png"


def run(*arguments):
    """The exit status of a command."""
    try:
        return main.main([str(one) for one in arguments])
    except SystemExit as end:
        return end.code


def refused(capsys, *arguments):
    """What a command says that must fail: one line, but for notices before it, and status 2."""
    assert run(*arguments) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines(True) if not line.startswith("minip2p: warning: ")]
    assert said.out == "" and len(errors) == 1 and errors[0].startswith("minip2p: error: "), said
    return errors[0].removeprefix("minip2p: error: ").strip()


def settings(path):
    """A PNG's parameters as the field's tools read them: prompt, negative prompt, and the pairs of the last line."""
    with Image.open(path) as picture:
        *prompt, last = picture.text["parameters"].split("\n")
    negative = prompt.pop().removeprefix("Negative prompt: ") if prompt[-1].startswith("Negative prompt: ") else ""
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    return "\n".join(prompt), negative, {n: json.loads(v) if v.startswith('"') else v for n, v in pairs}


def model_folder(folder, *changed):
    """A copy of the tiny model in which the named files may be changed; the others are links."""
    for file in (path for path in TINY.rglob("*") if path.is_file()):
        name = file.relative_to(TINY)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if str(name) in changed:
            shutil.copy(file, folder / name)
        else:
            (folder / name).symlink_to(file)
    return folder


# --- what it writes


def test_generate_writes_a_picture_that_can_be_made_again(tmp_path, capsys):
    out = tmp_path / "deep" / "v1.5.png"
    said = [
        "generate",
        "a cat, on the beach",
        "--negative",
        "fog: thick",
        "--steps",
        2,
        "--seed",
        3,
        "--guidance",
        2.5,
        "--size",
        "64x128",
        "-o",
        out,
    ]
    assert run(*said) == 0
    assert capsys.readouterr().out == f"{out}\n"
    prompt, negative, pairs = settings(out)
    assert (prompt, negative) == ("a cat, on the beach", "fog: thick")
    made_with = {"Steps": "2", "Sampler": "DDIM", "CFG scale": "2.5", "Seed": "3", "Size": "128x64", "Model": "tiny"}
    assert pairs == made_with
    columns, rows = map(int, pairs["Size"].split("x"))
    first = Image.open(out).tobytes()
    again = [
        "generate",
        prompt,
        "--negative",
        negative,
        "--steps",
        pairs["Steps"],
        "--guidance",
        pairs["CFG scale"],
        "--seed",
        pairs["Seed"],
        "--size",
        f"{rows}x{columns}",
        "-o",
        tmp_path / "folder",
    ]
    assert run(*again) == 0
    assert Image.open(tmp_path / "folder" / "a-cat-on-the-beach-seed3.png").tobytes() == first
    assert Image.open(out).size == (128, 64)


def test_a_prompt_that_is_cut_off_is_said_in_one_line(tmp_path, capsys):
    assert main.main(["generate", "a cat " * 60, "--steps", "1", "-o", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("minip2p: warning: the prompt 'a cat a cat") and said.count("\n") == 1, said


def test_edit_writes_targets_source_strip_and_report(tmp_path, capsys):
    targets = [TIGER, "a cat on the beach in the fog"]
    status = run(
        "edit",
        CAT,
        *targets,
        "--steps",
        2,
        "--cross",
        ".6",
        "--cross",
        "beach=.2:.4",
        "--self",
        ".3",
        "--reweight",
        "beach=-1.5",
        "--blend",
        "beach",
        "-o",
        tmp_path,
    )
    assert status == 0
    names = [f"a-tiger-on-the-beach-seed0-{end}.png" for end in ("1", "2", "source", "strip")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    said = capsys.readouterr().out
    assert all(str(tmp_path / name) in said for name in names)
    assert re.search(r"cat +1\.00 +tiger", said) and re.search(r"\(own map\) +1\.00 +fog", said)
    for target, name in zip(targets, names, strict=False):
        prompt, _, pairs = settings(tmp_path / name)
        assert prompt == target
        assert pairs["Source"] == CAT and pairs["Cross"] == ".6, beach=.2:.4" and pairs["Self"] == ".3"
        assert pairs["Reweight"] == "beach=-1.5" and pairs["LocalBlend"] == "beach" and pairs["Kind"] == "auto"
    assert settings(tmp_path / names[2])[0] == CAT
    with Image.open(tmp_path / names[3]) as strip:
        assert strip.width > 4 * 256 and strip.height > 2 * 256


def test_a_recorded_run_is_edited_in_another_process_to_the_same_bytes(tmp_path, capsys):
    """And without running the source again: the edit has its targets' rows and no others."""
    file, options = tmp_path / "runs" / "cat.safetensors", ("--seed", 3, "--steps", 4)
    assert run("generate", CAT, *options, "--record", file, "-o", tmp_path / "one.png") == 0
    assert capsys.readouterr().out == f"{file}\n{tmp_path / 'one.png'}\n"
    assert run("edit", CAT, TIGER, *options, "-o", tmp_path / "streamed") == 0
    done = subprocess.run(
        [sys.executable, "-m", "minip2p", "edit", file, TIGER, "-o", tmp_path / "filed"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{CAT} -> {TIGER}" in done.stdout
    names = [f"a-tiger-on-the-beach-seed3{end}.png" for end in ("", "-source", "-strip")]
    assert sorted(path.name for path in (tmp_path / "filed").iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / "filed" / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes()
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "filed" / names[1]) as source:
        assert one.tobytes() == source.tobytes()


def test_a_photograph_is_inverted_and_edited_in_one_go_or_two(tmp_path, capsys):
    """The same bytes either way, and of the source the picture itself as the VAE has it."""
    photo, file, steps = tmp_path / "my photo.png", tmp_path / "runs" / "photo.safetensors", ("--steps", 2)
    shutil.copy(ROOT / RENDER, photo)
    assert run("invert", photo, CAT, "-o", file, "--method", "negative-prompt", *steps) == 0
    assert capsys.readouterr().out == f"{file}\n{file.with_suffix('.png')}\n"
    assert settings(file.with_suffix(".png"))[2]["Method"] == "negative-prompt"
    assert run("edit", file, TIGER, "-o", tmp_path / "two.png") == 0
    one_go = "--prompt", CAT, "--method", "negative-prompt", *steps
    assert run("edit", photo, TIGER, *one_go, "-o", tmp_path / "one.png") == 0
    assert Image.open(tmp_path / "one.png").tobytes() == Image.open(tmp_path / "two.png").tobytes()
    assert settings(tmp_path / "one.png")[2]["Method"] == "negative-prompt"
    assert "Seed" not in settings(tmp_path / "one.png")[2] and settings(tmp_path / "one.png")[2]["Source"] == CAT
    assert run("edit", photo, TIGER, "--prompt", CAT, *steps, "-o", tmp_path / "direct.png") == 0
    expected = minip2p.load().invert(photo, CAT, steps=1).image
    assert Image.open(tmp_path / "direct-source.png").tobytes() == expected.tobytes()


def test_pasting_gives_the_photographs_own_pixels_outside_of_the_mask(tmp_path, model):
    photo, out = ROOT / RENDER, tmp_path / "p.png"
    assert run("edit", photo, TIGER, "--prompt", CAT, "--blend", "cat:tiger", "--paste", "--steps", 4, "-o", out) == 0
    edited, own = (np.asarray(Image.open(path).convert("RGB")) for path in (out, photo))
    plain = model.edit(model.invert(photo, CAT, steps=4), TIGER, local_blend=("cat", "tiger"))
    mask = plain.mask.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    assert 0 < mask.mean() < 1 and settings(out)[2]["Paste"] == "True"
    assert (edited[~mask] == own[~mask]).all() and (edited[mask] == np.asarray(plain.image)[mask]).all()


@pytest.mark.parametrize("options", [["--paste"], ["--paste", "--blend", "cat:tiger"]])
def test_pasting_needs_a_photograph_and_a_mask(tmp_path, capsys, options):
    source = [CAT] if "--blend" in options else [ROOT / RENDER, "--prompt", CAT]
    said = refused(capsys, "edit", source[0], TIGER, *source[1:], *options, "-o", tmp_path / "p.png")
    assert said.startswith("--paste is for a photograph, with --prompt, and needs --blend or --mask")


@pytest.mark.parametrize("command", ["invert", "edit", "--mask", "--within"])
def test_a_picture_that_is_read_is_never_overwritten(command, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    shutil.copy(ROOT / RENDER, photo)
    if command == "invert":
        said = refused(capsys, "invert", photo, CAT, "--steps", 1, "-o", tmp_path / "photo.safetensors")
    elif command == "edit":
        said = refused(capsys, "edit", photo, TIGER, "--prompt", CAT, "--steps", 1, "-o", photo)
    else:
        said = refused(capsys, "edit", CAT, TIGER, command, photo, "--steps", 1, "-o", photo)
    assert said == f"{photo}: is read, and would be overwritten: choose another name for what is written"
    assert photo.read_bytes() == (ROOT / RENDER).read_bytes() and list(tmp_path.iterdir()) == [photo]


def test_the_panel_without_p2p_goes_the_runs_own_way(model):
    run = model.invert(ROOT / RENDER, CAT, method="edit-friendly", steps=4)
    plain = commands.without_p2p(model, run, CAT)
    assert (plain.latents[:-1] - run.latents[:-1]).abs().max() < 1e-3
    generated = model.generate(CAT, seed=3, steps=2, size=(64, 64))
    expected = model.generate(TIGER, seed=3, steps=2, size=(64, 64))
    torch.testing.assert_close(
        commands.without_p2p(model, generated, TIGER).latents, expected.latents, rtol=0, atol=1e-4
    )


def test_maps_writes_an_overlay_a_word_and_a_strip(tmp_path, capsys):
    assert run("maps", "A cat and a dog", "--steps", 1, "-o", tmp_path / "m.png") == 0
    names = ["m.png", "m-1-a.png", "m-2-cat.png", "m-3-and.png", "m-4-dog.png", "m-strip.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert {settings(tmp_path / name)[0] for name in names} == {"A cat and a dog"}


def pixels(path):
    with Image.open(path) as picture:
        return picture.tobytes()


def test_every_option_of_an_edit_reaches_it(tmp_path):
    """Against the library, with no option at its default; and each of them changes the picture (a blend where its mask
    leaves something out, which is another test's)."""
    given = {
        "--cross": ".5",
        "--self": ".9",
        "--kind": "refine",
        "--reweight": "tiger=-2",
        "--blend": "cat:tiger",
        "--steps": "4",
        "--guidance": "3",
        "--negative": "fog",
        "--size": "64x96",
    }
    words = [word for pair in given.items() for word in pair]
    assert run("edit", CAT, TIGER, *words, "--seed", 5, "--explicit", "-o", tmp_path / "all.png") == 0
    model = minip2p.load()
    made = {"steps": 4, "guidance": 3.0, "negative": "fog", "size": (64, 96), "seed": 5}
    changes = {
        "cross": 0.5,
        "self_replace": 0.9,
        "kind": "refine",
        "reweight": {"tiger": -2},
        "blend": ("cat", "tiger"),
    }
    assert pixels(tmp_path / "all.png") == model.edit(CAT, TIGER, **changes, **made, explicit=True).image.tobytes()
    for name in ("cross", "self_replace", "kind", "reweight", "guidance", "negative", "seed"):
        without = {key: value for key, value in (changes | made).items() if key != name}
        assert pixels(tmp_path / "all.png") != model.edit(CAT, TIGER, **without, explicit=True).image.tobytes(), name


def test_the_explicit_execution_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "minip2p.pipeline.Pipeline.edit", lambda *_, explicit, **__: asked.append(explicit) or sys.exit(7)
    )
    for option in ([], ["--explicit"]):
        assert run("edit", CAT, TIGER, *option, "-o", tmp_path) == 7
    assert asked == [False, True]


def test_model_dtype_and_device_reach_load(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(experiments, "load", lambda *where, **how: asked.append((where, how)) or sys.exit(7))
    assert run("generate", CAT, "--dtype", "bfloat16", "--device", "cpu:0", "--model", "m", "-o", tmp_path) == 7
    assert asked == [(("m",), {"dtype": torch.bfloat16, "device": "cpu:0", "vae": None, "config": None})]


def test_each_overlay_shows_its_own_word(tmp_path):
    assert run("maps", CAT, "--steps", 2, "-o", tmp_path / "m.png") == 0
    made = minip2p.load().generate(CAT, steps=2)
    for number, word in enumerate(CAT.split(), 1):
        shown = viz.overlay(made.image, made.maps(word)[0]).tobytes()
        assert pixels(tmp_path / f"m-{number}-{word}.png") == shown


def test_the_demo_writes_five_pictures_and_a_sheet_and_says_what_to_look_at(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "STEPS", 1)
    demo.write_demo(tmp_path)
    *said, time_taken = capsys.readouterr().out.splitlines()
    names = ["1-swap.png", "2-phrase.png", "3-style.png", "4-reweight.png", "5-maps.png", "demo.png"]
    assert [line.split("  ")[0] for line in said] == [str(tmp_path / name) for name in names]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert all(len(line.split("  ")[1]) > 5 for line in said) and re.search(r"\d+ s$", time_taken)


@pytest.mark.parametrize(
    "given, is_read_as",
    [
        ([".8"], {"default_": 0.8}),
        ([".8", "cat=.4", "red car=.2:.6", ".5"], {"default_": 0.5, "cat": 0.4, "red car": (0.2, 0.6)}),
    ],
)
def test_shares_of_the_run(given, is_read_as):
    args = main.parser().parse_args(["edit", CAT, TIGER, *(x for one in given for x in ("--cross", one))])
    assert options.edit_options(args)["cross"] == is_read_as


@pytest.mark.parametrize(
    "given, is_read_as",
    [
        ([], None),
        (["--blend", "cat"], LocalBlend("cat", "cat")),
        (["--blend", "cat:tiger"], LocalBlend("cat", "tiger")),
        (["--blend", "cat", "--threshold", "otsu"], LocalBlend("cat", "cat", threshold="otsu")),
        (["--blend", "cat", "--threshold", ".2:.5"], LocalBlend("cat", "cat", threshold=(0.2, 0.5))),
        (["--blend", "cat", "--threshold", "85%"], LocalBlend("cat", "cat", threshold="85%")),
        (["--blend", "cat", "--threshold", "0.4"], LocalBlend("cat", "cat", threshold=0.4)),
    ],
)
def test_blend_words(given, is_read_as):
    assert options.edit_options(main.parser().parse_args(["edit", CAT, TIGER, *given]))["blend"] == is_read_as


def test_masks_are_read_in_the_size_and_shape_of_the_edit(tmp_path):
    """A mask of another size and shape is cut as the photograph is; both reach the edit, and each does something."""
    white = Image.new("L", (128, 64))
    white.paste(255, (64, 0, 128, 64))  # the right half: of the middle 64 × 64 that are left, too
    white.save(tmp_path / "right.png")
    given = ["--mask", tmp_path / "right.png", "--within", tmp_path / "right.png", "--steps", 4, "--size", "64x64"]
    assert run("edit", CAT, TIGER, *given, "-o", tmp_path / "all.png") == 0
    right = torch.zeros(64, 64)
    right[:, 32:] = 1
    model, made = minip2p.load(), {"steps": 4, "size": (64, 64)}
    both = {"blend": LocalBlend(mask=right), "within": right}
    assert pixels(tmp_path / "all.png") == model.edit(CAT, TIGER, **both, **made).image.tobytes()
    for name in both:
        other = {key: value for key, value in both.items() if key != name}
        assert pixels(tmp_path / "all.png") != model.edit(CAT, TIGER, **other, **made).image.tobytes()
    assert settings(tmp_path / "all.png")[2]["Mask"] == str(tmp_path / "right.png")
    assert run("edit", CAT, TIGER, *given, "--fit", "stretch", "-o", tmp_path / "other.png") == 0


def test_outside_of_ones_own_mask_a_pasted_photograph_keeps_its_pixels(tmp_path):
    """Also where the mask's edges do not follow the latents' pixels, which are eight wide."""
    mask = Image.new("L", (128, 128), 255)
    mask.paste(0, (0, 61, 128, 64))  # a line of three pixels
    mask.save(tmp_path / "line.png")
    given = ["--prompt", CAT, "--mask", tmp_path / "line.png", "--paste", "--steps", 2, "-o", tmp_path / "out.png"]
    assert run("edit", ROOT / RENDER, TIGER, *given) == 0
    with Image.open(tmp_path / "out.png") as made, Image.open(ROOT / RENDER) as photograph:
        box = (0, 61, 128, 64)
        assert made.crop(box).tobytes() == photograph.convert("RGB").crop(box).tobytes()
        assert made.tobytes() != photograph.convert("RGB").tobytes()


def test_a_mask_too_small_for_the_latents_is_one_clear_line(tmp_path, capsys):
    mask = Image.new("L", (128, 128))
    mask.paste(255, (10, 10, 14, 14))
    mask.save(tmp_path / "spot.png")
    assert run("edit", CAT, TIGER, "--mask", tmp_path / "spot.png", "--steps", 2, "-o", tmp_path / "out.png") == 2
    assert "covers less than half of every pixel of the latents" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_where_a_mask_is_transparent_nothing_may_change(tmp_path):
    """White ink on nothing, as programs for drawing save a mask: the right half may change and no other."""
    ink, flat = Image.new("RGBA", (128, 128), (255, 255, 255, 0)), Image.new("L", (128, 128), 0)
    ink.paste((255, 255, 255, 255), (64, 0, 128, 128))
    flat.paste(255, (64, 0, 128, 128))
    for name, mask in (("ink", ink), ("flat", flat)):
        mask.save(tmp_path / f"{name}.png")
        given = ["--mask", tmp_path / f"{name}.png", "--steps", 2, "-o", tmp_path / f"{name}-out.png"]
        assert run("edit", CAT, TIGER, *given) == 0
    assert pixels(tmp_path / "ink-out.png") == pixels(tmp_path / "flat-out.png")


def test_a_photograph_is_polished_where_asked(tmp_path):
    out = tmp_path / "p.png"
    assert run("edit", ROOT / RENDER, TIGER, "--prompt", CAT, "--polish", 2, "--steps", 2, "-o", out) == 0
    model = minip2p.load()
    made = model.edit(model.invert(ROOT / RENDER, CAT, steps=2, vae_refine_steps=2), TIGER)
    assert pixels(out) == made.image.tobytes() != model.edit(model.invert(ROOT / RENDER, CAT, steps=2), TIGER).image
    assert settings(out)[2]["Polish"] == "2"


# --- mistakes

MANY = "a cat " + "and a cat " * 25 + "and a dog"
MISTAKES = (
    (("edit", CAT, TIGER, "--blend", "cow"), "'cow' is not in the prompt 'a cat on the beach'"),
    (("edit", CAT, TIGER, "--blend", "cat"), "'cat' is not in the prompt 'a tiger on the beach'"),
    (("edit", CAT, TIGER, "--cross", "fog=.4"), "'fog' is not in the prompt"),
    (("edit", CAT, TIGER, "--reweight", "fog=2"), "'fog' is not in the prompt"),
    (("edit", MANY, MANY, "--reweight", "dog=2"), "'dog' lies beyond the last of the 77 tokens"),
    (("edit", CAT, "a big tiger on the beach", "--kind", "swap"), "a swap needs as many words"),
    (("edit", CAT, TIGER, "--reweight", "tiger=nan"), "the weight of 'tiger' is nan"),
    (("edit", CAT, TIGER, "--reweight", "tiger=inf"), "the weight of 'tiger' is inf"),
    (("edit", CAT, TIGER, "--reweight", "tiger"), "--reweight takes a word and its weight"),
    (("edit", CAT, TIGER, "--reweight", "tiger=1:2"), "--reweight takes a word and its weight"),
    (("edit", CAT, TIGER, "--cross", "nan"), "the steps of cross are shares 0 <= start <= end <= 1"),
    (("edit", CAT, TIGER, "--cross", ".8:.2"), "0 <= start <= end <= 1"),
    (("edit", CAT, TIGER, "--cross", "often"), "a share of the run is a number as .8, or two as .2:.8, not 'often'"),
    (("edit", CAT, TIGER, "--self", "2"), "the steps of self are shares 0 <= start <= end <= 1"),
    (("edit", CAT, TIGER, "--kind", "guess"), "invalid choice: 'guess'"),
    (("edit", CAT), "the following arguments are required: TARGET"),
    (("maps", "?!"), "has no words to show"),
    (("generate", CAT, "--guidance", "nan"), "guidance must be a finite number"),
    (("generate", CAT, "--guidance", "inf"), "guidance must be a finite number"),
    (("generate", CAT, "--guidance", "1e30"), "the latents are not finite after step"),
    (("generate", CAT, "--steps", "0"), "steps must lie between 1 and 1000"),
    (("generate", CAT, "--steps", "1001"), "steps must lie between 1 and 1000"),
    (("generate", CAT, "--steps", "many"), "argument --steps: invalid int value: 'many'"),
    (("generate", CAT, "--size", "100x128"), "size must be two multiples of 8"),
    (("generate", CAT, "--size", "0x0"), "size must be two multiples of 8"),
    (("generate", CAT, "--size", "8x8"), "size must be two multiples of 8"),
    (("generate", CAT, "--size", "128"), "--size is rows x columns"),
    (("generate", CAT, "--size", "-128x128"), "argument --size"),
    (("generate", CAT, "--size", "8000000000x8000000000"), "is too large"),
    (("generate", CAT, "--seed", "99999999999999999999"), "seed must lie between"),
    (("generate", CAT, "--device", "abacus"), "device abacus: torch cannot use it"),
    (("generate", CAT, "--device", "cuda:99"), "device cuda:99: torch cannot use it"),
    (("generate", CAT, "--device", "meta"), "device meta: torch cannot use it"),
    (("generate", CAT, "--model", "no/such/folder"), "no/such/folder: no such folder"),
    (("generate", CAT, "--model", "setup.cfg"), "setup.cfg: not a whole safetensors file"),
    (("generate", CAT, "--record", "run.bin"), "run.bin: the file of a run ends in .safetensors"),
    (("generate", CAT, "--record", "setup.cfg/x.safetensors"), "setup.cfg is not a folder"),
    (("edit", "none.safetensors", TIGER), "none.safetensors: no such file"),
    (("edit", f"weights/tiny/unet/{WEIGHTS}", TIGER), "not a run's file"),
    (("edit", "none.png", TIGER, "--prompt", CAT), "none.png: no such file"),
    (("edit", "setup.cfg", TIGER, "--prompt", CAT), "setup.cfg: not a picture that Pillow can read"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--method", "magic"), "invalid choice: 'magic'"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--seed", "1"), "direct inversion has no seed"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--blend", "cow"), "'cow' is not in the prompt"),
    (("edit", CAT, TIGER, "--blend", "cat:tiger", "--mask", RENDER), "give one of them"),
    (("edit", CAT, TIGER, "--threshold", ".3"), "--threshold is of the maps that --blend reads"),
    (("edit", CAT, TIGER, "--blend", "cat:tiger", "--threshold", "much"), "not 'much'"),
    (("edit", CAT, TIGER, "--blend", "cat:tiger", "--threshold", ".5:.2"), "a blend's threshold must lie between"),
    (("edit", CAT, TIGER, "--blend", "cat:tiger", "--threshold", "x%"), "a blend's threshold must lie between"),
    (("edit", CAT, TIGER, "--mask", "nothere.png"), "nothere.png: no such file"),
    (("edit", CAT, TIGER, "--within", "setup.cfg"), "not a picture that Pillow can read"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--polish", "-3"), "polish is a whole number of updates"),
    (("edit", CAT, TIGER, "--polish", "3"), "--polish is for a photograph"),
    (("edit", RENDER, TIGER), f"{RENDER} names a file: say what the photograph shows, with --prompt"),
    (("edit", "nothere.JPG", TIGER), "nothere.JPG names a file: say what the photograph shows, with --prompt"),
    (("edit", "CAT.SAFETENSORS", TIGER), "CAT.SAFETENSORS: no such file"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--method", "proximal", "--negative", "fog"), "it takes no other"),
    (("generate", CAT, "--record", "x" * 250 + ".safetensors"), "File name too long"),
    (("edit", CAT, TIGER, "--method", "ddim"), "--method is for a photograph: say what it shows, with --prompt"),
    (("frobnicate", CAT), "invalid choice: 'frobnicate'"),
    ((), "the following arguments are required: COMMAND"),
    (("generate", CAT, "--frob"), "unrecognized arguments: --frob"),
)


@pytest.mark.parametrize("arguments, says", MISTAKES, ids=[" ".join(a[:1] + a[-2:]) or "nothing" for a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, says, tmp_path, capsys):
    file = len(arguments) > 1 and arguments[1].endswith(".safetensors")
    steps = () if "--steps" in arguments or not arguments or file else ("--steps", "2")
    given = (*arguments, *steps, "-o", str(tmp_path / "new" / "out")) if arguments else ()
    assert says in refused(capsys, *given)
    assert not list(tmp_path.iterdir())


def test_a_recorded_run_has_its_own_settings(tmp_path, capsys):
    assert run("generate", CAT, "--steps", 1, "--record", tmp_path / "cat.safetensors", "-o", tmp_path / "x.png") == 0
    capsys.readouterr()
    said = refused(capsys, "edit", tmp_path / "cat.safetensors", TIGER, "--seed", 0, "--steps", 1, "-o", tmp_path / "y")
    assert said == "seed, steps: a run has its own; give a prompt as the source to choose"
    assert not (tmp_path / "y").exists()


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(name):
    def change(path):
        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path)

    return change


def with_more(path):
    tensors = load_file(path)
    save_file(tensors | {"surplus": tensors["conv_in.bias"].clone()}, path)


def with_wrong_shape(path):
    tensors = load_file(path)
    save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"][:-1].clone()}, path)


def with_nan(path):
    tensors = load_file(path)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, path)


def as_folder(path):
    path.unlink()
    path.mkdir()


BROKEN = (
    (f"unet/{WEIGHTS}", os.remove, "no such file"),
    (f"unet/{WEIGHTS}", truncated, "not a whole safetensors file"),
    (f"unet/{WEIGHTS}", without("conv_in.bias"), "conv_in.bias is missing"),
    (f"unet/{WEIGHTS}", with_more, "surplus is not a tensor of this model"),
    (f"unet/{WEIGHTS}", with_wrong_shape, "conv_in.bias has shape"),
    (f"unet/{WEIGHTS}", with_nan, "is not finite: the weights are damaged"),
    (f"vae/{WEIGHTS}", truncated, "not a whole safetensors file"),
    (f"vae/{WEIGHTS}", as_folder, "no such file"),
    ("text_encoder/model.safetensors", truncated, "not a whole safetensors file"),
    ("text_encoder/model.safetensors", os.remove, "no such file"),
    ("unet/config.json", os.remove, "no such file"),
    ("unet/config.json", truncated, "cannot be read as JSON"),
    ("unet/config.json", as_folder, "cannot be read as JSON"),
    ("vae/config.json", lambda path: path.write_text('{"frob": 3}'), "frob = 3 is not a field that minip2p knows"),
    ("scheduler/scheduler_config.json", lambda path: path.write_text("[]"), "expected a JSON object, found list"),
    ("text_encoder/config.json", truncated, "cannot be read as JSON"),
    ("tokenizer/vocab.json", os.remove, "no such file"),
    ("tokenizer/vocab.json", truncated, ""),
    ("tokenizer/tokenizer_config.json", os.remove, "no such file"),
    ("tokenizer/tokenizer_config.json", lambda path: path.write_text('{"model_max_length": "x"}'), ""),
    ("tokenizer/merges.txt", lambda path: path.write_bytes(b"\xff\xfe\x00"), ""),
)


@pytest.mark.parametrize("file, change, says", BROKEN, ids=[f"{file} {n}" for n, (file, _, _) in enumerate(BROKEN)])
def test_a_broken_model_is_one_line_that_names_the_file(file, change, says, tmp_path, capsys):
    folder = model_folder(tmp_path / "model", file)
    change(folder / file)
    said = refused(capsys, "generate", CAT, "--steps", 1, "--model", folder, "-o", tmp_path / "out")
    assert says in said
    assert file.split("/")[0] in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file/out", "file/x.png", "folder.png", "x" * 300 + ".png", "/proc/minip2p/x.png"])
def test_an_output_that_cannot_be_written_is_found_before_the_run(out, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr("minip2p.pipeline.Pipeline.generate", lambda *_, **__: pytest.fail("it ran"))
    refused(capsys, "generate", CAT, "-o", tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_pictures_are_written_all_or_none(tmp_path):
    picture, blocked = Image.new("RGB", (8, 8)), tmp_path / "b.png"
    (tmp_path / "a.png").write_text("as it was")

    class Unsaved(Image.Image):
        def save(self, path, *_, **__):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))

    with pytest.raises(OSError):
        png.write_pngs([(tmp_path / "a.png", picture, ""), (blocked, Unsaved(), "")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "as it was"


def test_ctrl_c_is_one_line_and_status_130(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("minip2p.pipeline.Pipeline.generate", interrupted)
    assert run("generate", CAT, "-o", tmp_path / "out") == 130
    assert capsys.readouterr().err == "minip2p: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_memory_that_is_not_there_is_one_line_and_a_fault_of_ours_is_a_traceback(capsys, monkeypatch):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")):
        monkeypatch.setattr(commands, "generate", lambda _, error=error: (_ for _ in ()).throw(error))
        assert "not enough memory" in refused(capsys, "generate", CAT)
    monkeypatch.setattr(commands, "generate", lambda _: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run("generate", CAT)


# --- parameters


@pytest.mark.parametrize("value", ["plain", "a, b", 'say "hi"', "two\nlines", "tief: Ü 猫", "back\\slash, comma"])
def test_parameters_can_be_read_back(value, tmp_path):
    class Parts:
        dtype = torch.bfloat16

        class vae:
            stride = 8

        made = CheckpointOrigin(said={"Model": "sd"})

    latents = torch.zeros(3, 4, 2, 3)
    source = SimpleNamespace(whole=SimpleNamespace(prompt=value))
    edited = Trajectory(Parts, "猫 on a mat", latents, 7.5, "ugly", 5, begun=source)
    png.write_pngs([(tmp_path / "x.png", Image.new("RGB", (8, 8)), metadata.parameters(edited, Blend=value))])
    prompt, negative, pairs = settings(tmp_path / "x.png")
    assert (prompt, negative) == ("猫 on a mat", "ugly")
    assert pairs == {
        "Steps": "2",
        "Sampler": "DDIM",
        "CFG scale": "7.5",
        "Seed": "5",
        "Size": "24x16",
        "Model": "sd",
        "Dtype": "bfloat16",
        "Source": value,
        "LocalBlend": value,
    }


def test_names_of_files_are_tame():
    assert png.slug("A cat, on/the ../beach?") == "a-cat-on-the-beach"
    assert png.slug("?!") == "picture"
    assert len(png.slug("word " * 100)) <= 40


# --- quick to start


def in_a_new_python(code):
    """Runs code in a Python of its own: what it prints, and how long the code itself took."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - start


def test_help_comes_without_torch_in_under_a_second():
    code = (
        "import sys; from minip2p import cli\ntry: cli.main([{}])\nexcept SystemExit as end: print(end.code)\n"
        "print(sorted({{'torch', 'numpy', 'PIL', 'transformers', 'tqdm'}} & set(sys.modules)))"
    )
    for arguments in ("'--help'", "'edit', '--help'"):
        said, seconds = in_a_new_python(code.format(arguments))
        assert "usage: minip2p" in said and said.endswith("0\n[]\n")
    assert min(seconds, *(in_a_new_python("import minip2p.cli.main")[1] for _ in range(3))) < 1


def test_import_comes_without_torch_in_under_two_seconds():
    said, seconds = in_a_new_python("import sys, minip2p; print('torch' in sys.modules, minip2p.__version__)")
    assert said.startswith("False ") and seconds < 2


def test_python_m_minip2p_is_the_command():
    done = subprocess.run([sys.executable, "-m", "minip2p", "edit"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_prompt_that_is_no_text_is_refused(capsys):
    for arguments in (["a \udcff cat"], ["a cat", "--negative", "\udcff"]):
        assert "not UTF-8" in refused(capsys, "generate", *arguments, "--steps", 1)


def test_output_that_nobody_reads_is_no_error_and_the_pictures_are_there(tmp_path):
    """The reader has gone before the first line is written."""
    command = [sys.executable, "-u", "-m", "minip2p", "edit", "a cat", "a dog", "--steps", "1", "-o", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 0 and said == b"" and len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_one_line():
    code = "import sys; from minip2p.errors import guarded; sys.exit(guarded(lambda: print(1)))"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_the_package_is_found_from_the_folder_that_holds_the_checkout():
    """Where the checkout is called minip2p too, its folder must not stand for the package."""
    done = subprocess.run(
        [sys.executable, "-c", "import minip2p; print(minip2p.load())"], cwd=ROOT.parent, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("Model("), done.stderr
