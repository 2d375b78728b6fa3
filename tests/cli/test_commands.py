"""The commands that make pictures: what they write, what their PNGs say, and one line for each mistake."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import CAT, PHOTO, TIGER, error_line, pixels, png_settings, run
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from minip2p import LocalBlend
from minip2p.checkpoints.load import usable_devices
from minip2p.cli import commands, options
from minip2p.cli.main import parser, subparsers
from minip2p.inversion.methods import METHODS
from minip2p.io import viz

TINY = ROOT / "weights" / "tiny"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    """Relative paths in the commands are relative to the checkout."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def loaded(model, monkeypatch):
    """The commands get the model that ships without loading it again."""
    load = options.load

    def load_once(path=None, **settings):
        chosen = {name: value for name, value in settings.items() if value is not None}
        is_default = path is None and chosen == {"dtype": torch.float32, "device": "cpu"}
        return model if is_default else load(path, **settings)

    monkeypatch.setattr(options, "load", load_once)


# --- generate


def test_generate_writes_a_picture_that_its_settings_reproduce(tmp_path, capsys):
    out = tmp_path / "deep" / "v1.5.png"
    first = "--negative", "fog: thick", "--steps", 2, "--seed", 3, "--guidance", 2.5, "--size", "64x128"
    assert run("generate", "a cat, on the beach", *first, "-o", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    prompt, negative, settings = png_settings(out)
    assert (prompt, negative) == ("a cat, on the beach", "fog: thick")
    expected = {"Steps": "2", "Sampler": "DDIM", "CFG scale": "2.5", "Seed": "3", "Size": "128x64", "Model": "tiny"}
    assert settings == expected
    columns, rows = settings["Size"].split("x")
    second = "--negative", negative, "--steps", settings["Steps"], "--guidance", settings["CFG scale"]
    second += "--seed", settings["Seed"], "--size", f"{rows}x{columns}"
    assert run("generate", prompt, *second, "-o", tmp_path / "folder") == 0
    assert pixels(tmp_path / "folder" / "a-cat-on-the-beach-seed3.png") == pixels(out)
    assert Image.open(out).size == (128, 64)


def test_a_prompt_that_is_cut_off_is_one_line_of_warning(tmp_path, capsys, loaded):
    assert run("generate", "a cat " * 60, "--steps", 1, "-o", tmp_path / "a.png") == 0
    errors = capsys.readouterr().err
    assert errors.startswith("minip2p: warning: the prompt 'a cat a cat") and errors.count("\n") == 1, errors


# --- edit


def test_edit_writes_targets_source_strip_and_prints_the_alignment(tmp_path, capsys, loaded):
    targets = [TIGER, "a cat on the beach in the fog"]
    settings = "--steps", 2, "--cross", ".6", "--cross", "beach=.2:.4", "--self", ".3"
    settings += "--reweight", "beach=-1.5", "--blend", "beach"
    assert run("edit", CAT, *targets, *settings, "-o", tmp_path) == 0
    names = ["a-tiger-on-the-beach-seed0.png", "a-cat-on-the-beach-in-the-fog-seed0.png"]
    names += [f"a-tiger-on-the-beach-seed0-{suffix}.png" for suffix in ("source", "strip")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    output = capsys.readouterr().out
    assert all(str(tmp_path / name) in output for name in names)
    assert re.search(r"cat +1\.00 +tiger", output) and re.search(r"\(own map\) +1\.00 +fog", output)
    for target, name in zip(targets, names, strict=False):
        prompt, _, pairs = png_settings(tmp_path / name)
        assert prompt == target
        assert pairs["Source"] == CAT and pairs["Cross"] == ".6, beach=.2:.4" and pairs["Self"] == ".3"
        assert pairs["Reweight"] == "beach=-1.5" and pairs["Blend"] == "beach" and pairs["Kind"] == "auto"
    assert png_settings(tmp_path / names[2])[0] == CAT
    with Image.open(tmp_path / names[3]) as strip:
        assert strip.width > 4 * 256 and strip.height > 2 * 256


def test_every_option_of_an_edit_reaches_the_library(tmp_path, loaded, model):
    """No option is at its default, and each of them changes the picture, except for a blend (see below)."""
    arguments = "--cross .5 --self .9 --kind refine --reweight tiger=-2 --blend cat:tiger --steps 4 --guidance 3"
    arguments += " --negative fog --size 64x96 --seed 5 --explicit"
    assert run("edit", CAT, TIGER, *arguments.split(), "-o", tmp_path / "all.png") == 0
    keywords = {"steps": 4, "guidance_scale": 3.0, "negative_prompt": "fog", "size": (64, 96), "seed": 5}
    keywords |= {"cross_replace": 0.5, "self_replace": 0.9, "kind": "refine", "reweight": {"tiger": -2}}

    def edited(keywords):
        return model.edit(CAT, TIGER, **keywords, local_blend=("cat", "tiger"), explicit=True).image.tobytes()

    assert pixels(tmp_path / "all.png") == edited(keywords)
    for name in keywords.keys() - {"steps", "size"}:
        assert pixels(tmp_path / "all.png") != edited({k: v for k, v in keywords.items() if k != name}), name


def test_explicit_asks_for_the_explicit_execution(tmp_path, monkeypatch, loaded):
    calls = []

    def stop(*_, explicit, **__):
        calls.append(explicit)
        raise SystemExit(7)

    monkeypatch.setattr("minip2p.pipeline.Pipeline.edit", stop)
    for option in ([], ["--explicit"]):
        assert run("edit", CAT, TIGER, *option, "-o", tmp_path) == 7
    assert calls == [False, True]


def test_a_recorded_run_is_edited_in_another_process_to_the_same_bytes(tmp_path, capsys):
    file, settings = tmp_path / "runs" / "cat.safetensors", ("--seed", 3, "--steps", 4)
    assert run("generate", CAT, *settings, "--record", file, "-o", tmp_path / "generated.png") == 0
    assert capsys.readouterr().out == f"{file}\n{tmp_path / 'generated.png'}\n"
    assert run("edit", CAT, TIGER, *settings, "-o", tmp_path / "from-prompt") == 0
    command = [sys.executable, "-m", "minip2p", "edit", file, TIGER, "-o", tmp_path / "from-file"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{CAT} -> {TIGER}" in done.stdout
    names = [f"a-tiger-on-the-beach-seed3{suffix}.png" for suffix in ("", "-source", "-strip")]
    assert sorted(path.name for path in (tmp_path / "from-file").iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / "from-file" / name).read_bytes() == (tmp_path / "from-prompt" / name).read_bytes()
    assert pixels(tmp_path / "generated.png") == pixels(tmp_path / "from-file" / names[1])


def test_a_recorded_run_keeps_its_settings(tmp_path, capsys, loaded):
    file = tmp_path / "cat.safetensors"
    assert run("generate", CAT, "--steps", 1, "--record", file, "-o", tmp_path / "x.png") == 0
    capsys.readouterr()
    line = error_line(capsys, "edit", file, TIGER, "--seed", 0, "--steps", 1, "-o", tmp_path / "y")
    assert line == f"--seed, --steps: the run in {file} has its own settings"
    assert not (tmp_path / "y").exists()


def test_the_panel_without_p2p_keeps_the_conditioning_of_the_run(model):
    run = model.invert(PHOTO, CAT, method="edit-friendly", steps=4)
    plain = commands.without_p2p(model, run, CAT)
    assert (plain.latents[:-1] - run.latents[:-1]).abs().max() < 1e-3
    generated = model.generate(CAT, seed=3, steps=2, size=(64, 64))
    plain = commands.without_p2p(model, generated, TIGER)
    expected = model.generate(TIGER, seed=3, steps=2, size=(64, 64))
    torch.testing.assert_close(plain.latents, expected.latents, rtol=0, atol=1e-4)


# --- photographs


def test_a_photograph_is_inverted_and_edited_in_one_command_or_two(tmp_path, capsys, loaded, model):
    """The pixels are the same either way, and the source is the picture as the VAE has it."""
    photo, file, steps = tmp_path / "my photo.png", tmp_path / "runs" / "photo.safetensors", ("--steps", 2)
    shutil.copy(PHOTO, photo)
    assert run("invert", photo, CAT, "-o", file, "--method", "negative-prompt", *steps) == 0
    assert capsys.readouterr().out == f"{file}\n{file.with_suffix('.png')}\n"
    assert png_settings(file.with_suffix(".png"))[2]["Method"] == "negative-prompt"
    assert run("edit", file, TIGER, "-o", tmp_path / "two.png") == 0
    inversion = "--prompt", CAT, "--method", "negative-prompt", *steps
    assert run("edit", photo, TIGER, *inversion, "-o", tmp_path / "one.png") == 0
    assert pixels(tmp_path / "one.png") == pixels(tmp_path / "two.png")
    settings = png_settings(tmp_path / "one.png")[2]
    assert settings["Method"] == "negative-prompt" and settings["Source"] == CAT and "Seed" not in settings
    assert run("edit", photo, TIGER, "--prompt", CAT, *steps, "-o", tmp_path / "direct.png") == 0
    assert png_settings(tmp_path / "direct.png")[2]["Method"] == "direct"
    assert pixels(tmp_path / "direct-source.png") == model.invert(photo, CAT, steps=1).image.tobytes()


def test_fast_is_virtual_inversion_in_few_steps(tmp_path, loaded, model):
    """In as many as the model's scheduler needs, or as are asked for."""
    photo, out = (PHOTO, "--prompt", CAT, "--fast", "--size", "64x64", "--seed", 3), tmp_path / "fast.png"
    assert run("edit", *photo[:1], TIGER, *photo[1:], "--steps", 2, "-o", out) == 0
    expected = model.edit(model.invert(PHOTO, CAT, method="virtual", steps=2, size=(64, 64), seed=3), TIGER)
    assert pixels(out) == expected.image.tobytes()
    settings = png_settings(out)[2]
    assert (settings["Method"], settings["Steps"], settings["Sampler"]) == ("virtual", "2", "DDCM")
    assert settings["Seed"] == "3" == png_settings(tmp_path / "fast-source.png")[2]["Seed"]
    for scheduler, steps in (("ddim", "15"), ("lcm", "4")):
        file = tmp_path / f"{scheduler}.safetensors"
        assert run("invert", PHOTO, CAT, "--fast", "--size", "64x64", "--scheduler", scheduler, "-o", file) == 0
        assert png_settings(file.with_suffix(".png"))[2]["Steps"] == steps


@pytest.mark.parametrize("method", ["virtual", "edit-friendly"])
def test_invert_draws_the_noise_of_its_seed_and_its_picture_says_so(method, tmp_path, loaded, model):
    """As `edit` and `maps` do."""
    arguments = "--method", method, "--skip", 0.5, "--steps", 2, "--size", "64x64"
    file = tmp_path / "p.safetensors"
    assert run("invert", PHOTO, CAT, *arguments, "--seed", 3, "-o", file) == 0
    expected = model.invert(PHOTO, CAT, method=method, skip=0.5, steps=2, size=(64, 64), seed=3)
    assert torch.equal(model.open(file).latents, expected.latents)
    settings = png_settings(file.with_suffix(".png"))[2]
    assert (settings["Seed"], settings["Skip"]) == ("3", "0.5")
    assert run("maps", PHOTO, "--prompt", CAT, *arguments, "-o", tmp_path / "m.png") == 0
    settings = png_settings(tmp_path / "m.png")[2]
    assert (settings["Seed"], settings["Skip"]) == ("0", "0.5")


def test_polish_refines_the_latents_of_the_photograph(tmp_path, loaded, model):
    out = tmp_path / "p.png"
    assert run("edit", PHOTO, TIGER, "--prompt", CAT, "--polish", 6, "--steps", 2, "-o", out) == 0
    refined, plain = (model.edit(model.invert(PHOTO, CAT, steps=2, vae_refine_steps=n), TIGER) for n in (6, 0))
    assert pixels(out) == refined.image.tobytes() != plain.image.tobytes()
    assert png_settings(out)[2]["Polish"] == "6"


def test_paste_keeps_the_photographs_pixels_outside_of_the_mask(tmp_path, loaded, model):
    out = tmp_path / "p.png"
    assert run("edit", PHOTO, TIGER, "--prompt", CAT, "--blend", "cat:tiger", "--paste", "--steps", 4, "-o", out) == 0
    edited, photo = (np.asarray(Image.open(path).convert("RGB")) for path in (out, PHOTO))
    plain = model.edit(model.invert(PHOTO, CAT, steps=4), TIGER, local_blend=("cat", "tiger"))
    mask = plain.blend_mask.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    assert 0 < mask.mean() < 1 and png_settings(out)[2]["Paste"] == "True"
    assert (edited[~mask] == photo[~mask]).all() and (edited[mask] == np.asarray(plain.image)[mask]).all()


def test_paste_follows_the_edges_of_a_mask_from_a_file_to_the_pixel(tmp_path, loaded):
    """Also where they do not follow the latents' pixels, which are eight wide."""
    mask = Image.new("L", (128, 128), 255)
    mask.paste(0, (0, 61, 128, 64))  # a line of three pixels
    mask.save(tmp_path / "line.png")
    settings = "--prompt", CAT, "--mask", tmp_path / "line.png", "--paste", "--steps", 2
    assert run("edit", PHOTO, TIGER, *settings, "-o", tmp_path / "out.png") == 0
    with Image.open(tmp_path / "out.png") as edited, Image.open(PHOTO) as photo:
        box, photo = (0, 61, 128, 64), photo.convert("RGB")
        assert edited.crop(box).tobytes() == photo.crop(box).tobytes()
        assert edited.tobytes() != photo.tobytes()


def test_paste_keeps_the_pixels_of_a_generated_picture_outside_of_the_mask(tmp_path, loaded, model):
    """Without it they differ by the decoder alone, whose pixels depend on their neighbours."""
    edit = "edit", CAT, TIGER, "--blend", "cat:tiger", "--steps", 4
    assert run(*edit, "--paste", "-o", tmp_path / "p.png") == 0
    assert run(*edit, "-o", tmp_path / "q.png") == 0
    pasted, plain, source = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("p", "q", "p-source"))
    edited = model.edit(CAT, TIGER, local_blend=("cat", "tiger"), steps=4)
    mask = edited.blend_mask.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    assert (pasted[~mask] == source[~mask]).all() and (pasted[mask] == plain[mask]).all()
    error = (plain[~mask].astype(float) - source[~mask]) ** 2
    assert 30 < 10 * np.log10(255**2 / error.mean()) < 60
    assert png_settings(tmp_path / "p.png")[2]["Paste"] == "True"


def test_paste_keeps_the_pixels_outside_of_the_places_of_moved_objects(tmp_path, loaded, capsys):
    edit = "edit", CAT, "--seed", 1, "--steps", 4, "--move", "cat:24,0", "--paste"
    assert run(*edit[:2], CAT, *edit[2:], "-o", tmp_path / "p.png") == 0
    pasted, source = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("p", "p-source"))
    assert (pasted[:8] == source[:8]).all() and (pasted != source).any()
    capsys.readouterr()
    line = error_line(capsys, *edit[:2], "a cat on the snow", *edit[2:], "-o", tmp_path / "q.png")
    assert line.startswith("--paste needs a mask: new words may change the picture anywhere")
    assert not (tmp_path / "q.png").exists()


@pytest.mark.parametrize("arguments", [[PHOTO, TIGER, "--prompt", CAT], [CAT, TIGER]])
def test_paste_needs_a_mask(arguments, tmp_path, capsys, loaded):
    line = error_line(capsys, "edit", *arguments, "--paste", "-o", tmp_path / "p.png")
    assert line == "--paste needs a mask: give a word with --blend, or a picture with --mask, or move an object"


@pytest.mark.parametrize("command", ["invert", "edit", "--mask", "--within"])
def test_an_input_is_never_overwritten(command, tmp_path, capsys, loaded):
    photo = tmp_path / "photo.png"
    shutil.copy(PHOTO, photo)
    arguments = {
        "invert": ("invert", photo, CAT, "-o", tmp_path / "photo.safetensors"),
        "edit": ("edit", photo, TIGER, "--prompt", CAT, "-o", photo),
    }.get(command, ("edit", CAT, TIGER, command, photo, "-o", photo))
    line = error_line(capsys, *arguments, "--steps", 1)
    assert line == f"{photo}: is an input and would be overwritten: choose another name for the output"
    assert photo.read_bytes() == PHOTO.read_bytes() and list(tmp_path.iterdir()) == [photo]


# --- masks


def test_masks_are_fitted_to_the_size_of_the_edit(tmp_path, loaded, model):
    """A mask of another size and shape is cropped as a photograph is. Both masks reach the edit, and both matter."""
    mask = Image.new("L", (128, 64))
    mask.paste(255, (64, 0, 128, 64))  # the right half, also of the middle 64 x 64 that a crop leaves
    mask.save(tmp_path / "right.png")
    arguments = ["--mask", tmp_path / "right.png", "--within", tmp_path / "right.png", "--steps", 4, "--size", "64x64"]
    assert run("edit", CAT, TIGER, *arguments, "-o", tmp_path / "all.png") == 0
    right = torch.zeros(64, 64)
    right[:, 32:] = 1
    masks = {"local_blend": LocalBlend(mask=right), "region": right}

    def edited(masks):
        return model.edit(CAT, TIGER, steps=4, size=(64, 64), **masks).image.tobytes()

    assert pixels(tmp_path / "all.png") == edited(masks)
    for name in masks:
        assert pixels(tmp_path / "all.png") != edited({key: mask for key, mask in masks.items() if key != name})
    assert png_settings(tmp_path / "all.png")[2]["Mask"] == str(tmp_path / "right.png")
    assert run("edit", CAT, TIGER, *arguments, "--fit", "stretch", "-o", tmp_path / "other.png") == 0


def test_a_mask_too_small_for_the_latents_is_one_line(tmp_path, capsys, loaded):
    mask = Image.new("L", (128, 128))
    mask.paste(255, (10, 10, 14, 14))
    mask.save(tmp_path / "spot.png")
    line = error_line(
        capsys, "edit", CAT, TIGER, "--mask", tmp_path / "spot.png", "--steps", 2, "-o", tmp_path / "out.png"
    )
    assert "covers less than half of every latent pixel" in line
    assert not (tmp_path / "out.png").exists()


def test_nothing_changes_where_a_mask_is_transparent(tmp_path, loaded):
    """White on transparent pixels, as drawing programs save a mask: only the white right half may change."""
    ink, flat = Image.new("RGBA", (128, 128), (255, 255, 255, 0)), Image.new("L", (128, 128), 0)
    ink.paste((255, 255, 255, 255), (64, 0, 128, 128))
    flat.paste(255, (64, 0, 128, 128))
    for name, mask in (("ink", ink), ("flat", flat)):
        mask.save(tmp_path / f"{name}.png")
        arguments = ["--mask", tmp_path / f"{name}.png", "--steps", 2, "-o", tmp_path / f"{name}-out.png"]
        assert run("edit", CAT, TIGER, *arguments) == 0
    assert pixels(tmp_path / "ink-out.png") == pixels(tmp_path / "flat-out.png")


# --- maps


def test_maps_writes_an_overlay_for_each_word_and_a_strip(tmp_path, capsys, loaded):
    assert run("maps", "A cat and a dog", "--steps", 1, "-o", tmp_path / "m.png") == 0
    names = ["m.png", "m-1-a.png", "m-2-cat.png", "m-3-and.png", "m-4-dog.png", "m-strip.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert {png_settings(tmp_path / name)[0] for name in names} == {"A cat and a dog"}


def test_each_overlay_shows_the_map_of_its_word_on_one_scale(tmp_path, loaded, model):
    """A word that gets little attention is dark."""
    assert run("maps", CAT, "--steps", 2, "-o", tmp_path / "m.png") == 0
    generated = model.generate(CAT, steps=2)
    top = float(generated.maps(CAT.split()).max())
    for number, word in enumerate(CAT.split(), 1):
        overlay = viz.overlay(generated.image, generated.maps(word)[0], maximum=top)
        assert pixels(tmp_path / f"m-{number}-{word}.png") == overlay.tobytes()


def test_maps_of_a_runs_file_and_of_a_photograph(tmp_path, loaded, model, capsys):
    file = tmp_path / "run.safetensors"
    generated = model.generate(CAT, steps=2, seed=3)
    generated.save(file)
    assert run("maps", file, "-o", tmp_path / "run") == 0
    assert run("maps", CAT, "--steps", 2, "--seed", 3, "-o", tmp_path / "prompt") == 0
    names = [path.name for path in sorted((tmp_path / "prompt").iterdir())]
    assert len(names) == 7 and names[0].startswith("a-cat-on-the-beach-seed3")
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "prompt" / name).read_bytes()
    assert run("maps", PHOTO, "--prompt", CAT, "--method", "ddim", "--steps", 2, "-o", tmp_path / "photo.png") == 0
    assert pixels(tmp_path / "photo.png") == model.invert(PHOTO, CAT, method="ddim", steps=2).image.tobytes()
    assert png_settings(tmp_path / "photo-strip.png")[2]["Method"] == "ddim"
    capsys.readouterr()
    line = error_line(capsys, "maps", file, "--seed", 1, "--clip-skip", 2, "-o", tmp_path / "x")
    assert line == f"--seed, --clip-skip: the run in {file} has its own settings"


# --- several seeds, existing files


def test_several_seeds_in_one_call(tmp_path, capsys, loaded, model):
    files = [tmp_path / f"a-cat-on-the-beach-seed{seed}.png" for seed in (3, 1)]
    assert run("generate", CAT, "--seed", "3,1", "--steps", 1, "-o", tmp_path) == 0
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    for file, seed in zip(files, (3, 1), strict=True):
        assert png_settings(file)[2]["Seed"] == str(seed)
        assert pixels(file) == model.generate(CAT, seed=seed, steps=1).image.tobytes()
    out, record = tmp_path / "x.png", tmp_path / "r.safetensors"
    assert run("generate", CAT, "--count", 2, "--steps", 1, "-o", out, "--record", record) == 0
    names = ["r-seed0.safetensors", "r-seed1.safetensors", "x-seed0.png", "x-seed1.png"]
    assert all((tmp_path / name).exists() for name in names) and not out.exists()
    assert run("edit", CAT, TIGER, "--count", 2, "--steps", 1, "-o", tmp_path / "edit") == 0
    assert pixels(tmp_path / "edit/a-tiger-on-the-beach-seed1-source.png") == pixels(tmp_path / "x-seed1.png")
    assert run("maps", "a cat", "--seed", "4,5", "--steps", 1, "-o", tmp_path / "maps") == 0
    assert len(list((tmp_path / "maps").iterdir())) == 2 * 4


def test_a_random_seed_is_printed_and_makes_the_picture_again(tmp_path, capsys, loaded):
    assert run("generate", CAT, "--seed", "random", "--steps", 1, "-o", tmp_path / "a.png") == 0
    seed = re.match(r"seed (\d+)\n", capsys.readouterr().out)[1]
    assert png_settings(tmp_path / "a.png")[2]["Seed"] == seed
    assert run("generate", CAT, "--seed", seed, "--steps", 1, "-o", tmp_path / "b.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "arguments, name",
    [
        (("generate", CAT, "-o", "x.png"), "x.png"),
        (("generate", CAT, "-o", "y.png", "--record", "x.safetensors"), "x.safetensors"),
        (("generate", CAT, "-o", "x.png", "--seed", "1,2"), "x-seed2.png"),
        (("edit", CAT, TIGER, "-o", "x.png"), "x-strip.png"),
        (("maps", CAT, "-o", "x.png"), "x-2-cat.png"),
        (("invert", PHOTO, CAT, "-o", "x.safetensors"), "x.png"),
        (("demo", "-o", "."), "3-style.png"),
    ],
)
def test_an_existing_file_is_replaced_only_with_overwrite(arguments, name, tmp_path, capsys, monkeypatch, loaded):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("precious")
    line = error_line(capsys, *arguments, *(() if arguments[0] == "demo" else ("--steps", 1)))
    assert line == f"{name}: exists already: choose another name, or replace it with --overwrite"
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "precious"
    if arguments[0] != "demo":
        assert run(*arguments, "--steps", 1, "--overwrite") == 0
        assert (tmp_path / name).stat().st_size > 100


def test_clip_skip_reaches_the_run_and_its_png(tmp_path, loaded, model):
    assert run("generate", CAT, "--clip-skip", 2, "--steps", 2, "-o", tmp_path / "a.png") == 0
    assert pixels(tmp_path / "a.png") == model.generate(CAT, steps=2, clip_skip=2).image.tobytes()
    assert png_settings(tmp_path / "a.png")[2]["Clip skip"] == "2"
    assert run("edit", CAT, TIGER, "--clip-skip", 2, "--steps", 2, "-o", tmp_path / "b.png") == 0
    assert pixels(tmp_path / "b.png") == model.edit(CAT, TIGER, steps=2, clip_skip=2).image.tobytes()


def test_approximations_reach_the_run_and_its_png(tmp_path, loaded, model):
    options = ("--guidance-interval", "0:.6", "--uncond-every", 2, "--steps", 5)
    assert run("edit", CAT, TIGER, *options, "-o", tmp_path / "a.png") == 0
    expected = model.edit(CAT, TIGER, guidance_interval=(0, 0.6), uncond_every=2, steps=5)
    assert pixels(tmp_path / "a.png") == expected.image.tobytes()
    settings = png_settings(tmp_path / "a.png")[2]
    assert (settings["Guidance interval"], settings["Unconditional every"]) == ("0-0.6", "2")


def test_the_comparison_without_p2p_can_be_left_out(tmp_path, loaded, monkeypatch):
    monkeypatch.setattr(commands, "without_p2p", lambda *_: pytest.fail("it ran"))
    assert run("edit", CAT, TIGER, "--no-compare", "--steps", 1, "-o", tmp_path / "a.png") == 0
    with Image.open(tmp_path / "a-strip.png") as strip:
        assert strip.width < 3 * 256


def test_targets_of_the_same_name_are_numbered(tmp_path, loaded):
    assert run("edit", CAT, TIGER, "A tiger on the beach", "a dog", "--steps", 1, "--no-compare", "-o", tmp_path) == 0
    names = [f"a-tiger-on-the-beach-seed0{end}.png" for end in ("-1", "-2", "-source", "-strip")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "a-dog-seed0.png"])


# --- notices


def test_words_that_the_model_never_saw_are_one_line(tmp_path, capsys, loaded):
    assert run("generate", "two cats on the beach", "--steps", 1, "-o", tmp_path / "a.png") == 0
    line = "this model was trained without the words 'two', 'cats': `minip2p words` lists those that it knows"
    assert capsys.readouterr().err == f"minip2p: warning: {line}\n"


@pytest.mark.parametrize(
    "command, message",
    [
        (("generate", CAT, "--guidance", 1, "--negative", "fog"), "--negative has no effect at guidance 1"),
        (("generate", CAT, "--guidance", 0), "the prompt has no effect at guidance 0"),
        (("edit", CAT, TIGER, "--guidance", 1, "--negative", "fog"), "--negative has no effect at guidance 1"),
        (("edit", PHOTO, TIGER, "--prompt", CAT, "--guidance", 1, "--negative", "fog"), "--negative has no effect"),
        (("maps", CAT, "--guidance", 1, "--negative", "fog"), "--negative has no effect at guidance 1"),
        (("generate", ""), "a prompt is empty, so nothing says what its picture shows"),
        (("generate", "  "), "a prompt is empty"),
        (("edit", "", TIGER), "a prompt is empty"),
        (("edit", CAT, ""), "a prompt is empty"),
    ],
)
def test_a_prompt_that_has_no_effect_is_one_line(command, message, tmp_path, capsys, loaded):
    assert run(*command, "--steps", 1, "-o", tmp_path / "a.png") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"minip2p: warning: {message}")


def test_a_prompt_that_has_an_effect_has_no_notice(tmp_path, capsys, loaded):
    for n, guidance in enumerate((["--guidance", 2, "--negative", "fog"], ["--guidance", 1], [])):
        assert run("generate", CAT, "--steps", 1, *guidance, "-o", tmp_path / f"{n}.png") == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("method", METHODS)
def test_a_negative_prompt_that_an_inversion_does_not_take_is_refused_first(method, tmp_path, capsys, loaded):
    """No warning, here of the word "two", comes before the error."""
    options_given = ("--method", method, "--steps", 1, "--size", "64x64", "--negative", "two cats")
    run_file = tmp_path / "run.safetensors"
    if method not in commands.PROMPT_AS_NEGATIVE:
        assert run("invert", PHOTO, CAT, *options_given, "-o", run_file) == 0
        return
    for command in (
        ("edit", PHOTO, TIGER, "--prompt", CAT),
        ("maps", PHOTO, "--prompt", CAT),
        ("invert", PHOTO, CAT, "-o", run_file),
    ):
        line = error_line(capsys, *command, *options_given)
        start = f"--negative: --method {method} makes the photograph's prompt the negative prompt"
        assert line == f"{start}, and takes no other"


def test_a1111s_syntax_is_one_line(tmp_path, capsys, loaded):
    prompt = "a (cat:1.3) <lora:x:.8> BREAK on the beach"
    assert run("generate", prompt, "--steps", 1, "-o", tmp_path / "a.png") == 0
    errors = capsys.readouterr().err
    assert "A1111's web UI, '<lora:x:.8>', '(cat:1.3)', 'BREAK', which is read as plain words" in errors
    assert errors.count("\n") == 1


# --- mistakes

RENDER = "tests/data/renders/00.png"
MANY = "a cat " + "and a cat " * 25 + "and a dog"
MISTAKES = (
    (("edit", CAT, TIGER, "--blend", "cow"), "'cow' is not in the prompt 'a cat on the beach'"),
    (("edit", CAT, TIGER, "--blend", "cat"), "'cat' is not in the prompt 'a tiger on the beach'"),
    (("edit", CAT, TIGER, "--cross", "fog=.4"), "'fog' is not in the prompt"),
    (("edit", CAT, TIGER, "--reweight", "fog=2"), "'fog' is not in the prompt"),
    (("edit", MANY, MANY, "--reweight", "dog=2"), "'dog' lies beyond the last of the 77 tokens"),
    (("edit", CAT, "a big tiger on the beach", "--kind", "swap"), "a swap needs as many words"),
    (("edit", CAT, TIGER, "--reweight", "tiger=nan"), "--reweight tiger=nan: the weight must be a finite number"),
    (("edit", CAT, TIGER, "--reweight", "tiger=inf"), "--reweight tiger=inf: the weight must be a finite number"),
    (("edit", CAT, TIGER, "--reweight", "tiger"), "--reweight takes a word and its weight"),
    (("edit", CAT, TIGER, "--reweight", "tiger=1:2"), "--reweight takes a word and its weight"),
    (("edit", CAT, TIGER, "--move", "dog:8,0"), "--move dog: 'dog' is not in the prompt 'a cat on the beach'"),
    (("edit", CAT, TIGER, "--move", "cat:8"), "--move takes a word and x,y in pixels, to the right and down"),
    (("edit", CAT, TIGER, "--move", "cat:nan,0"), "an object is moved by (x, y) pixels, as (32, 0), not by (nan, 0.0)"),
    (("edit", CAT, TIGER, "--resize", "cat:20"), "the scale of an object must be a number from 0.1 to 10, not 20.0"),
    (("edit", CAT, TIGER, "--resize", "2"), "--resize takes a word and a factor of its size, as cat:1.5, not '2'"),
    (("edit", CAT, TIGER, "--move", "cat:8,0", "--remove", "cat"), "'cat' is named twice among the objects"),
    (("edit", CAT, CAT, "--move", "cat:8,0", "--move", "cat:9,0"), "--move names 'cat' twice: give it once"),
    (("edit", CAT, CAT, "--resize", "cat:2", "--resize", "cat:3"), "--resize names 'cat' twice: give it once"),
    (("edit", CAT, CAT, "--move", "cat:999,0"), "the new place of 'cat', by (999, 0) pixels at scale 1, is outside"),
    (
        ("edit", CAT, CAT, "--remove", "the"),
        "'the' stands for no object that has a place in the picture: name an object",
    ),
    (("edit", CAT, TIGER, "--cross", "nan"), "the steps of --cross are shares 0 <= start <= end <= 1"),
    (("edit", CAT, TIGER, "--cross", ".8:.2"), "0 <= start <= end <= 1"),
    (
        ("edit", CAT, TIGER, "--cross", "often"),
        "--cross is a share of the steps, a number as .8, or two as .2:.8, not 'often'",
    ),
    (("edit", CAT, TIGER, "--self", "2"), "the steps of --self are shares 0 <= start <= end <= 1"),
    (("maps", "?!"), "has no words to show"),
    (("generate", CAT, "--guidance", "nan"), "--guidance must be a finite number"),
    (("generate", CAT, "--guidance", "inf"), "--guidance must be a finite number"),
    (("generate", CAT, "--guidance", "1e30"), "the latents are not finite after step"),
    (("generate", CAT, "--steps", "0"), "--steps must lie between 1 and 1000"),
    (("generate", CAT, "--steps", "1001"), "--steps must lie between 1 and 1000"),
    (("generate", CAT, "--size", "100x128"), "--size must be two multiples of 8 of at least 32 pixels, not 100x128"),
    (("generate", CAT, "--size", "0x0"), "--size must be two multiples of 8"),
    (("generate", CAT, "--size", "8x8"), "--size must be two multiples of 8"),
    (("generate", CAT, "--size", "128"), "--size is rows x columns"),
    (("generate", CAT, "--size", "8000000000x8000000000"), "is too large"),
    (("generate", CAT, "--seed", "99999999999999999999"), "--seed must lie between"),
    (("generate", CAT, "--device", "abacus"), "--device abacus: torch cannot use it"),
    (("generate", CAT, "--device", ""), "--device : torch cannot use it"),
    (("generate", CAT, "--device", "cuda:99"), "--device cuda:99: torch cannot use it"),
    (("generate", CAT, "--model", "no/such/folder"), "no/such/folder: no such folder"),
    (("generate", CAT, "--model", "setup.cfg"), "setup.cfg: not a whole safetensors file"),
    (("generate", CAT, "--record", "run.bin"), "run.bin: the name of a run's file must end in .safetensors"),
    (("generate", CAT, "--record", "setup.cfg/x.safetensors"), "setup.cfg is not a folder"),
    (("edit", "none.safetensors", TIGER), "none.safetensors: no such file"),
    (("edit", f"weights/tiny/unet/{WEIGHTS}", TIGER), "is a file of weights, not that of a run"),
    (("edit", "none.png", TIGER, "--prompt", CAT), "none.png: no such file"),
    (("edit", "setup.cfg", TIGER, "--prompt", CAT), "setup.cfg: is not an image that Pillow can read"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--seed", "1"), "--seed: this inversion of a photograph draws no noise"),
    (("maps", RENDER, "--prompt", CAT, "--count", "2"), "--count: this inversion of a photograph draws no noise"),
    (("invert", RENDER, CAT, "--seed", "1"), "--seed: this inversion of a photograph draws no noise"),
    (("invert", RENDER, CAT, "--fast", "--seed", "-1"), "--seed must lie between"),
    (("invert", RENDER, CAT, "--fast", "--seed", "1,2"), "--seed: must be a whole number, not '1,2'"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--blend", "cow"), "'cow' is not in the prompt"),
    (("edit", CAT, TIGER, "--blend", "cat:tiger", "--mask", RENDER), "give one of them"),
    (("edit", CAT, TIGER, "--threshold", ".3"), "--threshold is for the heat maps of --blend"),
    (("edit", CAT, TIGER, "--blend", "cat:tiger", "--threshold", "much"), "not 'much'"),
    (("edit", CAT, TIGER, "--blend", "cat:tiger", "--threshold", ".5:.2"), "--threshold is a number in 0 to 1"),
    (("edit", CAT, TIGER, "--blend", "cat:tiger", "--threshold", "x%"), "--threshold is a number in 0 to 1"),
    (("edit", CAT, TIGER, "--mask", "nothere.png"), "nothere.png: no such file"),
    (("edit", CAT, TIGER, "--within", "setup.cfg"), "is not an image that Pillow can read"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--polish", "-3"), "--polish is a whole number of updates"),
    (("edit", CAT, TIGER, "--polish", "3"), "--polish: the source is not a photograph"),
    (("edit", RENDER, TIGER), f"{RENDER}: is a picture: describe it with --prompt"),
    (("edit", "nothere.JPG", TIGER), "nothere.JPG: no such file, and a source is a prompt"),
    (("edit", "./cat", TIGER), "./cat: no such file, and a source is a prompt"),
    (("maps", "x/cat.safetensor"), "x/cat.safetensor: no such file, and a source is a prompt"),
    (("edit", "tests", TIGER), "tests: is a folder, and a source is a prompt"),
    (("maps", RENDER), f"{RENDER}: is a picture: describe it with --prompt"),
    (("edit", "https://example.org/cat.png", TIGER), "is a URL, and minip2p opens files: download it first"),
    (("generate", CAT, "--clip-skip", "0"), "--clip-skip is counted from 1, which skips nothing, and is 0"),
    (("generate", CAT, "--clip-skip", "9"), "--clip-skip must lie between 1, which skips nothing, and 3"),
    (("generate", CAT, "--guidance-interval", ".5"), "--guidance-interval is two shares of the steps, as .2:.8, not"),
    (("generate", CAT, "--guidance-interval", ".5:.2"), "--guidance-interval is two shares 0 <= start < end <= 1"),
    (("generate", CAT, "--uncond-every", "2", "--guidance", "1"), "there are none to save at guidance 1"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--method", "null-text", "--uncond-every", "2"), "of every step, which"),
    (("generate", CAT, "--seed", "one"), "--seed is a whole number from 0 on"),
    (("generate", CAT, "--model", "no.safetensors", "--config", "weights/tiny"), "no.safetensors: no such file"),
    (("edit", "CAT.SAFETENSORS", TIGER), "CAT.SAFETENSORS: no such file"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--method", "proximal", "--negative", "fog"), "and takes no other"),
    (("generate", CAT, "--record", "x" * 250 + ".safetensors"), "File name too long"),
    (("edit", CAT, TIGER, "--method", "ddim"), "--method: the source is not a photograph"),
    (("edit", CAT, TIGER, "--skip", ".2"), "--skip: the source is not a photograph"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--skip", ".2"), "--skip: edits of direct inversion take every step"),
    (("maps", RENDER, "--prompt", CAT, "--method", "virtual", "--skip", "1"), "--skip must be a number from"),
    (("edit", CAT, TIGER, "--fast"), "--fast: the source is not a photograph"),
    (("edit", RENDER, TIGER, "--prompt", CAT, "--method", "ddim", "--fast"), "leave out --fast or --method ddim"),
    (("maps", RENDER, "--prompt", CAT, "--fast", "--skip", "1"), "--skip must be a number from"),
)


@pytest.mark.parametrize("arguments, message", MISTAKES, ids=[" ".join(a[:1] + a[-2:]) for a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_writes_nothing(arguments, message, tmp_path, capsys, loaded):
    steps = () if "--steps" in arguments or arguments[1].lower().endswith(".safetensors") else ("--steps", "2")
    out = "out.safetensors" if arguments[0] == "invert" else "out"
    assert message in error_line(capsys, *arguments, *steps, "-o", tmp_path / "new" / out)
    assert not list(tmp_path.iterdir())


def test_the_device_without_memory_is_refused(tmp_path, capsys):
    line = error_line(capsys, "generate", CAT, "--device", "meta", "-o", tmp_path / "x.png")
    assert line.startswith("--device meta: torch cannot use it")


# A value of each option that is wrong; of --negative and --prompt every text is right.
WRONG = {"--seed": "x", "--count": 0, "--steps": 0, "--guidance": "nan", "--size": "100x100", "--clip-skip": 0}
WRONG |= {"--guidance-interval": "x", "--uncond-every": 0}
WRONG |= {"--kind": "x", "--cross": "2", "--self": "2", "--reweight": "tiger=x", "--blend": "cow", "--threshold": "2"}
WRONG |= {"--method": "x", "--skip": "x", "--fit": "x", "--polish": -1, "--picture-guidance": "x", "--methods": "x"}
WRONG |= {"--dtype": "x", "--device": "abacus", "--scheduler": "x", "--shard": "x"}
WRONG |= {"--move": "cat", "--resize": "cat:x", "--duplicate": "cat:1", "--remove": "cow"}
WRONG |= dict.fromkeys(["--out", "--record", "--mask", "--within", "--model", "--config", "--vae", "--lora"], "")
WRONG |= {"--preset": "x", "--samples": 0, "--guidance-range": "2:1", "--cross-range": "x", "--self-range": ".5:2"}
WRONG |= {"--self-max-queries": -1, "--masks": "x", "--mask-threshold": "2", "--grow": 9, "--keep": 0, "--noises": 0}
WRONG |= {"--ray": "x", "--least": "x=1", "--for": "style", "--format": "x"}
WRONG |= dict.fromkeys(["--embedding", "--clip", "--cases", "--lpips", "--dino"], "")
OPERANDS = {"generate": (CAT,), "edit": (CAT, TIGER), "invert": (PHOTO, CAT), "instruct": (PHOTO, CAT), "maps": (CAT,)}
OPERANDS |= {"inpaint": (PHOTO, CAT), "sweep": ("examples/grid.toml",), "show": (PHOTO,)}
OPERANDS |= {"pairs": (ROOT / "tests/data/pairs.jsonl",)}


@pytest.mark.parametrize("command", sorted(subparsers(parser()).keys() - {"app", "plan"}))
def test_the_error_of_a_wrong_value_names_its_option(command, capsys, monkeypatch, loaded, tmp_path):
    """Not the keyword of the library, for every option of every command."""
    before = {path.name for path in ROOT.iterdir()}
    for flag in subparsers(parser())[command].flags.values():
        is_model_first = command in ("instruct", "inpaint") and flag == "--steps"  # it needs the schedule of a model
        without_value = "--help", "--overwrite", "--paste", "--no-compare", "--explicit", "--fast"
        if not flag.startswith("--") or flag in without_value:
            continue
        if is_model_first or flag in ("--negative", "--prompt", "--tell", "--by", "--by-model", "--join"):
            continue
        more = ["--blend", "cat:tiger"] if flag == "--threshold" else []
        more += ["-o", tmp_path / "x.safetensors" if command == "invert" else tmp_path] if flag != "--out" else []
        more += ["--mask", PHOTO] if command == "inpaint" and flag != "--mask" else []
        line = error_line(capsys, command, *OPERANDS.get(command, ()), flag, WRONG[flag], *more)
        assert re.search(rf"{flag}(?![\w-])", line), (flag, line)
    assert not list(tmp_path.iterdir()) and {path.name for path in ROOT.iterdir()} == before


@pytest.mark.parametrize(
    "arguments, end",
    [
        ((TIGER, "--blend", "cat"), "beach; did you mean cat:tiger?"),
        (("a big tiger on the beach", "--blend", "cat"), "did you mean cat:big tiger?"),
        ((TIGER, "--reweight", "cat=2"), "did you mean tiger?"),
        (("the beach", "--blend", "cat"), "its words are: the, beach"),
        ((TIGER, "--blend", "cat:"), "--blend is a word, or source:target, not 'cat:'"),
    ],
)
def test_a_word_that_the_edit_replaces_is_named_with_the_new_one(arguments, end, capsys, loaded):
    assert error_line(capsys, "edit", CAT, *arguments, "--steps", 1).endswith(end)


def test_a_mistake_comes_without_the_warnings(capsys, loaded):
    assert "'cow' is not in the prompt" in error_line(capsys, "edit", "two cats", "two dogs", "--blend", "cow")


def test_the_error_of_a_device_names_those_of_this_machine(capsys):
    line = error_line(capsys, "generate", CAT, "--device", "gpu")
    assert line == f"--device gpu: torch cannot use it; here it can use {' or '.join(usable_devices())}"
    assert "cpu" in usable_devices()


@pytest.mark.parametrize("out", ["out.PNG", "ö x.png", "v1.5.png"])
def test_the_picture_has_the_name_that_was_given(out, tmp_path, capsys, monkeypatch, loaded):
    monkeypatch.chdir(tmp_path)
    assert run("edit", CAT, TIGER, "--steps", 1, "--no-compare", "-o", out) == 0
    stem, suffix = out[:-4], out[-4:]
    assert {path.name for path in tmp_path.iterdir()} == {out, f"{stem}-source{suffix}", f"{stem}-strip{suffix}"}


def test_a_prompt_that_is_not_text_is_one_line(capsys, loaded):
    for arguments in (["a \udcff cat"], ["a cat", "--negative", "\udcff"]):
        assert "not UTF-8" in error_line(capsys, "generate", *arguments, "--steps", 1)


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG", "x.webp", "x.safetensors"])
@pytest.mark.parametrize("command", [("generate", CAT), ("edit", CAT, TIGER), ("maps", CAT), ("demo",)])
def test_a_picture_is_written_as_png_and_no_folder_gets_the_name_of_a_file(command, name, tmp_path, capsys, loaded):
    line = error_line(capsys, *command, "-o", tmp_path / "out" / name)
    expected = "the output is PNG files: give a folder, or a name that ends in .png"
    assert line == f"{tmp_path / 'out' / name}: {expected}" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file/out", "file/x.png", "folder.png", "x" * 300 + ".png", "/proc/minip2p/x.png"])
def test_an_output_that_cannot_be_written_is_reported_before_the_run(out, tmp_path, capsys, monkeypatch, loaded):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr("minip2p.pipeline.Pipeline.generate", lambda *_, **__: pytest.fail("it ran"))
    error_line(capsys, "generate", CAT, "-o", tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


# --- broken models


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


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(name):
    def change(path):
        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path)

    return change


def with_surplus(path):
    tensors = load_file(path)
    save_file(tensors | {"surplus": tensors["conv_in.bias"].clone()}, path)


def with_wrong_shape(path):
    tensors = load_file(path)
    save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"][:-1].clone()}, path)


def with_nan(path):
    tensors = load_file(path)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, path)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


BROKEN = (
    (f"unet/{WEIGHTS}", os.remove, "no such file"),
    (f"unet/{WEIGHTS}", truncate, "not a whole safetensors file"),
    (f"unet/{WEIGHTS}", without("conv_in.bias"), "conv_in.bias is missing"),
    (f"unet/{WEIGHTS}", with_surplus, "surplus is not a tensor of this model"),
    (f"unet/{WEIGHTS}", with_wrong_shape, "conv_in.bias has shape"),
    (f"unet/{WEIGHTS}", with_nan, "is not finite: the weights are damaged"),
    (f"vae/{WEIGHTS}", truncate, "not a whole safetensors file"),
    (f"vae/{WEIGHTS}", replace_by_folder, "no such file"),
    ("text_encoder/model.safetensors", truncate, "not a whole safetensors file"),
    ("text_encoder/model.safetensors", os.remove, "no such file"),
    ("unet/config.json", os.remove, "no such file"),
    ("unet/config.json", truncate, "cannot be read as JSON"),
    ("unet/config.json", replace_by_folder, "is a folder, not a file"),
    ("vae/config.json", lambda path: path.write_text('{"frob": 3}'), "frob = 3 is not a field that minip2p knows"),
    ("scheduler/scheduler_config.json", lambda path: path.write_text("[]"), "expected a JSON object, found list"),
    ("text_encoder/config.json", truncate, "cannot be read as JSON"),
    ("tokenizer/vocab.json", os.remove, "no such file"),
    ("tokenizer/vocab.json", truncate, ""),
    ("tokenizer/tokenizer_config.json", os.remove, "no such file"),
    ("tokenizer/tokenizer_config.json", lambda path: path.write_text('{"model_max_length": "x"}'), ""),
    ("tokenizer/merges.txt", lambda path: path.write_bytes(b"\xff\xfe\x00"), ""),
)


@pytest.mark.parametrize("file, change, message", BROKEN, ids=[f"{file} {n}" for n, (file, _, _) in enumerate(BROKEN)])
def test_a_broken_model_is_one_line_that_names_the_file(file, change, message, tmp_path, capsys):
    folder = model_folder(tmp_path / "model", file)
    change(folder / file)
    line = error_line(capsys, "generate", CAT, "--steps", 1, "--model", folder, "-o", tmp_path / "out")
    assert message in line and file.split("/")[0] in line
    assert not (tmp_path / "out").exists()
