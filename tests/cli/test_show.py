"""`minip2p show` and `minip2p words`."""

import pytest
import torch
from command_line import CAT, PHOTO, error_line, run
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from minip2p.sampling import metadata
from minip2p.tiny import scenes


def test_show_prints_what_a_png_holds(model, tmp_path, capsys):
    text = metadata.parameters(model.generate(CAT, steps=1, seed=3, negative_prompt="fog"))
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert run("show", tmp_path / "a.png") == 0
    assert capsys.readouterr().out == text + "\n"
    assert run("show", tmp_path / "a.png", tmp_path / "a.png") == 0
    assert capsys.readouterr().out.count(f"{tmp_path / 'a.png'}\n{text}\n") == 2


def test_show_prints_the_settings_of_a_runs_file(model, tmp_path, capsys):
    options = {"steps": 2, "seed": 3, "size": (64, 96), "clip_skip": 2, "negative_prompt": "fog"}
    model.record(CAT, file=tmp_path / "run.safetensors", **options)
    model.generate(CAT, steps=1).save(tmp_path / "plain.safetensors")
    assert run("show", tmp_path / "run.safetensors") == 0
    settings = "Steps: 2, Sampler: DDIM, CFG scale: 4.0, Seed: 3, Clip skip: 2, Latents: 12x8, Model: tiny, "
    settings += "Recorded attention: yes"
    assert capsys.readouterr().out == f"{CAT}\nNegative prompt: fog\n{settings}\n"
    model.generate(CAT, steps=4, size=(64, 96), guidance_interval=(0.25, 1), uncond_every=2).save(
        tmp_path / "fast.safetensors"
    )
    assert run("show", tmp_path / "fast.safetensors") == 0
    settings = "Seed: 0, Guidance interval: 0.25-1.0, Unconditional every: 2, Latents: 12x8, Model: tiny\n"
    assert capsys.readouterr().out.endswith(settings)
    assert run("show", tmp_path / "plain.safetensors") == 0
    assert capsys.readouterr().out.endswith(
        "Steps: 1, Sampler: DDIM, CFG scale: 4.0, Seed: 0, Latents: 16x16, Model: tiny\n"
    )


def test_show_names_the_method_of_an_inversion_and_its_sampler(model, tmp_path, capsys):
    for method, sampler, rest in (
        ("direct", "DDIM", ""),
        ("edit-friendly", "DDPM", ", Conditioned on: variance_noise"),
        ("virtual", "DDCM", ", Eta: 0.1, Source CFG scale: 1.0, Conditioned on: variance_noise"),
    ):
        run_of_photo = model.invert(PHOTO, CAT, method=method, steps=1, size=(64, 64))
        run_of_photo.save(tmp_path / "photo.safetensors")
        assert run("show", tmp_path / "photo.safetensors") == 0
        settings = f"Steps: 1, Sampler: {sampler}, CFG scale: 4.0, Latents: 8x8, Model: tiny, Method: {method}{rest}"
        assert capsys.readouterr().out == f"{CAT}\n{settings}\n"


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_show_prints_what_a1111_writes_into_the_exif_comment(tmp_path, capsys, suffix):
    text, exif = "猫\nSteps: 20, Sampler: Euler a, Seed: 1", Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert run("show", tmp_path / f"a.{suffix}") == 0
    assert capsys.readouterr().out == text + "\n"


def test_files_without_settings_are_one_line(tmp_path, capsys):
    comfy, plain = PngInfo(), tmp_path / "plain.png"
    comfy.add_text("workflow", "{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "comfy.png", pnginfo=comfy)
    Image.new("RGB", (8, 8)).save(plain)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    for name in ("invokeai_metadata", "Comment"):
        info = PngInfo()
        info.add_text(name, "{}")
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png", pnginfo=info)
    (tmp_path / "broken.png").write_bytes(plain.read_bytes()[:40])
    save_file({"latents": torch.zeros(2, 4, 8, 8)}, tmp_path / "lora.safetensors")
    (tmp_path / "text.txt").write_text("cat")
    for name, message in (
        ("comfy.png", "has a workflow of ComfyUI"),
        ("plain.png", "has no settings"),
        ("plain.jpg", "has no settings"),
        ("invokeai_metadata.png", "has settings of InvokeAI and no settings in A1111's form"),
        ("Comment.png", "has a comment, as of NovelAI, and no settings in A1111's form"),
        ("broken.png", "cannot be read"),
        ("lora.safetensors", "is a file of weights, not that of a run"),
        ("text.txt", "is neither a picture nor the file of a run"),
        ("none.png", "no such file"),
        (".", "a folder, not a file"),
    ):
        line = error_line(capsys, "show", tmp_path / name)
        assert message in line and str(tmp_path) in line


def test_words_lists_every_word_of_the_captions(model, capsys):
    assert run("words") == 0
    output = capsys.readouterr().out
    assert all(word in output for word in scenes.caption_words())
    assert model.text.known_words == set(scenes.caption_words())  # what weights/tiny says of itself
    rng_captions = [scene.caption for scene in scenes.dataset(3, 200)]
    words = {word.strip(",") for caption in rng_captions for word in caption.split()}
    assert words <= model.text.known_words


def test_show_reads_no_photograph(capsys):
    assert "has no settings" in error_line(capsys, "show", PHOTO)
