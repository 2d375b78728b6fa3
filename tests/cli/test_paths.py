"""Arguments that name files: ~, URLs, and a SOURCE that is a path and not a prompt."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
from command_line import CAT, PHOTO

from minip2p.cli import paths
from minip2p.cli.main import parser, subparsers


def test_a_tilde_is_the_home_folder():
    args = Namespace(model="~/models/x", lora=["~/a.safetensors:.5", "b.safetensors"], out="~/out", prompt="~/cat")
    paths.expand_paths(args)
    home = str(Path.home())
    assert (args.model, args.out, args.prompt) == (f"{home}/models/x", f"{home}/out", "~/cat")
    assert args.lora == [f"{home}/a.safetensors:.5", "b.safetensors"]


@pytest.mark.parametrize(
    "name, url, message",
    [
        ("picture", "https://example.org/cat.png", "is a URL, and minip2p opens files: download it first"),
        ("source", "HTTP://example.org/cat.png", "is a URL, and minip2p opens files: download it first"),
        ("mask", "file:///tmp/cat.png", "is a URL, and minip2p opens files: download it first"),
        ("model", "https://huggingface.co/org/name", "is a URL: give the name on the hub, org/name"),
        ("lora", ["https://huggingface.co/org/name/"], "is a URL: give the name on the hub, org/name"),
        ("model", "https://huggingface.co/org/name/resolve/main/a.safetensors", "download it first"),
        ("model", "https://example.org/org/name", "download it first"),
        ("out", "https://example.org/x.png", "is a URL, and files are written to this computer"),
        ("record", "s.example/x.safetensors", None),
        ("out", "", "out is empty, and must name a file or a folder"),
        ("lora", [" "], "lora is empty, and must name a file or a folder"),
        ("source", "", None),
        (
            "out",
            "~no-such-user/x",
            "~no-such-user/x: the home folder of ~no-such-user is unknown; write ./~no-such-user",
        ),
        ("lora", ["~no-such-user/x:.5"], "the home folder of ~no-such-user is unknown"),
        ("source", "~no-such-user/cat", "the home folder of ~no-such-user is unknown"),
        ("source", "~no-such-user", None),
        ("out", "x.png/", "x.png/: ends as a folder does and has the name of a file: leave the slash out"),
        ("record", "x.Safetensors//", "ends as a folder does and has the name of a file"),
        ("out", "x/", None),
        ("out", "-", "out is -, and files are not written to the standard output"),
        ("picture", "-", None),
    ],
)
def test_urls_and_empty_names_are_no_paths(name, url, message):
    args = Namespace(**{name: url})
    if message is None:
        return paths.expand_paths(args)
    with pytest.raises(ValueError, match=re.escape(message)):
        paths.expand_paths(args)


@pytest.mark.parametrize(
    "source",
    ["./cat", "../cat", "/tmp/no-such-cat", "x/cat.safetensor", "cat.safetensor", "nothere.JPG", "no such/cat.webp"]
    + ["C:\\cats\\cat", "cats\\cat.ckpt", "cats/", "~nobody/cat", "my runs/cat.safetensor"],
)
def test_a_source_that_looks_like_a_path_is_an_error(source):
    with pytest.raises(ValueError, match="no such file, and a source is a prompt, the file of a run") as error:
        paths.check_source(source, False)
    assert str(error.value).startswith(f"{source}: ")


@pytest.mark.parametrize(
    "source",
    [
        CAT,
        "v1.5",
        "cat/dog",
        "a cat/dog",
        "a St.Bernard",
        "a cat... sitting",
        "e.g.",
        "",
        "a 1/2 cat",
        "./cat ",
    ],
)
def test_a_source_that_may_be_a_prompt_or_a_run_is_none(source):
    paths.check_source(source, False)


def test_the_file_of_a_run_exists():
    with pytest.raises(FileNotFoundError, match="^x.safetensors: no such file$"):
        paths.check_source("x.safetensors", False)


def test_a_folder_and_a_picture_are_no_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="cat: is a folder, and a source is a prompt"):
        paths.check_source("cat", False)
    paths.check_source("cat ", False)
    with pytest.raises(ValueError, match="is a picture: describe it with --prompt, or give the file of a run$"):
        paths.check_source(str(PHOTO), False)
    paths.check_source(str(PHOTO), True)


def test_a_planner_is_a_folder_or_the_address_of_a_server(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    for value, expected in (("~/llama", "/home/ada/llama"), ("http://localhost:11434/v1", "http://localhost:11434/v1")):
        args = Namespace(by=value)
        paths.expand_paths(args)
        assert args.by == expected
    with pytest.raises(ValueError, match="by is empty"):
        paths.expand_paths(Namespace(by=" "))


def test_every_argument_that_names_a_file_is_looked_at():
    """By what the usage calls its value."""
    names = {
        action.dest
        for sub in subparsers(parser()).values()
        for action in sub._actions
        if re.search(r"FILE|FOLDER|PATH|IMAGE|GRID|SOURCE|OUT|PROMPTS", str(action.metavar))
    }
    assert names == {*paths.PATH_ARGUMENTS, *paths.OUTPUT_ARGUMENTS}
