"""What a file is, by its first bytes: every command and every reader names it in the same words."""

import pickle
import shutil

import pytest
from command_line import CAT, PHOTO, TIGER, error_line, run
from PIL import Image

from minip2p.checkpoints.file_formats import check_format
from minip2p.io.contents import is_picture, is_run
from minip2p.io.files import read_text
from minip2p.io.images import read_image
from minip2p.sampling.run_file import FORMAT

OTHERS = {
    "an empty file": (b"", "is empty: copy or download it again"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer, not the file"),
    "a page": (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "is an HTML page, not the file itself: download it again"),
    "JSON": (b'{"error": "Unauthorized"}', "is JSON text, not the file itself"),
    "SVG": (b'<?xml version="1.0"?><svg>', "is XML text, such as an SVG drawing: export it as PNG"),
    "SVG without a header": (b"<svg xmlns=", "is an SVG drawing: export it as PNG"),
    "a PDF": (b"%PDF-1.7", "is a PDF: export it as PNG"),
}


@pytest.fixture
def run_file(model, tmp_path):
    model.generate(CAT, steps=1).save(tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors"


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_neither_picture_nor_weights_is_named_by_all_in_the_same_words(kind, tmp_path, capsys):
    content, sentence = OTHERS[kind]
    for name in ("x.png", "x.safetensors"):
        file = tmp_path / name
        file.write_bytes(content)
        for read in (read_image, check_format):
            with pytest.raises(ValueError) as error:
                read(file)
            assert str(error.value).startswith(f"{file}: {sentence}")
        for command in (
            ("show", file),
            ("edit", file, TIGER),
            ("maps", file),
            ("edit", file, TIGER, "--prompt", CAT),
            ("edit", CAT, TIGER, "--mask", file),
            ("invert", file, CAT, "-o", tmp_path / "out.safetensors"),
            ("generate", CAT, "--lora", file),
        ):
            assert error_line(capsys, *command).startswith(f"{file}: {sentence}")


@pytest.mark.parametrize("kind", ["a pointer", "a page"])
def test_a_text_file_that_stands_in_for_another_is_named(kind, tmp_path):
    (tmp_path / "config.json").write_bytes(OTHERS[kind][0])
    with pytest.raises(ValueError, match=rf"config.json: {OTHERS[kind][1]}"):
        read_text(tmp_path / "config.json")


def test_the_file_of_a_run_is_known_under_any_name(model, run_file, tmp_path, capsys):
    copy, out = tmp_path / "copy", tmp_path / "out.png"
    shutil.copy(run_file, copy)
    assert is_run(copy) and FORMAT.startswith("minip2p run ")
    assert run("show", copy) == 0 and capsys.readouterr().out.startswith(CAT)
    assert run("edit", copy, TIGER, "--no-compare", "-o", out) == 0 and out.exists()
    assert run("maps", copy, "-o", tmp_path / "maps") == 0
    capsys.readouterr()
    assert "has its own settings" in error_line(capsys, "edit", copy, TIGER, "--steps", 3)
    for command in (("edit", copy, TIGER), ("maps", copy)):
        line = error_line(capsys, *command, "--prompt", CAT)
        assert line == f"{copy}: is the file of a run, which has its own prompt: leave --prompt out"
    sentence = f"{copy}: is the file of a run, not a picture"
    assert error_line(capsys, "edit", CAT, TIGER, "--mask", copy) == sentence
    assert error_line(capsys, "invert", copy, CAT, "-o", tmp_path / "b.safetensors") == sentence


def test_a_picture_is_known_under_any_name(tmp_path, capsys):
    file = tmp_path / "photo.safetensors"
    shutil.copy(PHOTO, file)
    assert run("edit", file, TIGER, "--prompt", CAT, "--steps", 1, "--no-compare", "-o", tmp_path / "out.png") == 0
    capsys.readouterr()
    for command in (("edit", file, TIGER), ("maps", file)):
        line = error_line(capsys, *command)
        assert line == f"{file}: is a picture: describe it with --prompt, or give the file of a run"
    assert "has no settings" in error_line(capsys, "show", file)
    assert error_line(capsys, "generate", CAT, "--model", file) == f"{file}: is a picture, not weights"


def test_a_run_that_is_cut_off_and_weights_are_named_by_show_as_by_edit(run_file, tmp_path, capsys):
    content = run_file.read_bytes()
    for name, part, message in (
        ("no end", content[:-8], "not a whole safetensors file (Error while deserializing header"),
        ("half a header", content[:40], "is not a whole safetensors file: copy or download it again"),
        ("weights", (PHOTO.parents[3] / "weights/judge/judge.safetensors").read_bytes(), "is a file of weights, not"),
        ("a pickle", pickle.dumps(1), "is neither a picture nor the file of a run, which `minip2p generate --record`"),
    ):
        file = tmp_path / name
        file.write_bytes(part)
        lines = [error_line(capsys, *command) for command in (("show", file), ("edit", file, TIGER), ("maps", file))]
        assert all(line.startswith(f"{file}: {message}") for line in lines), lines


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_pictures_are_told_by_their_first_bytes(tmp_path, suffix):
    Image.new("RGB", (8, 8)).save(tmp_path / f"x.{suffix}")
    assert is_picture((tmp_path / f"x.{suffix}").read_bytes()) and not is_run(tmp_path / f"x.{suffix}")
    assert not is_picture(b"a cat") and not is_picture(b"")
