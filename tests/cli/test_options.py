"""The options of the command line as arguments of the library."""

import pytest
import torch
from command_line import CAT, PHOTO, TIGER, run

from minip2p import LocalBlend
from minip2p.cli import options
from minip2p.cli.main import parser


def parse(*arguments):
    return parser().parse_args([str(argument) for argument in arguments])


def test_what_is_not_given_is_left_to_the_library():
    args = parse("edit", CAT, TIGER)
    assert options.run_options(args) == options.invert_options(args) == {}
    assert options.edit_options(args) == {"reweight": {}, "explicit": False}


def test_run_options():
    args = parse("generate", CAT, "--seed", 0, "--steps", 3, "--guidance", 0, "--negative", "", "--size", "64x96")
    expected = {"seed": 0, "steps": 3, "guidance_scale": 0.0, "negative_prompt": "", "size": (64, 96)}
    assert options.run_options(args) == expected
    assert options.run_options(parse("invert", PHOTO, CAT, "--steps", 3)) == {"steps": 3}


def test_invert_options():
    args = parse("invert", PHOTO, CAT, "--method", "ddim", "--fit", "stretch", "--polish", 2)
    assert options.invert_options(args) == {"method": "ddim", "fit": "stretch", "vae_refine_steps": 2}


@pytest.mark.parametrize(
    "texts, expected",
    [
        ([".8"], {"default_": 0.8}),
        (["cat=.4"], {"default_": 0.8, "cat": 0.4}),
        ([".8", "cat=.4", "red car=.2:.6", ".5"], {"default_": 0.5, "cat": 0.4, "red car": (0.2, 0.6)}),
        (["0:.6:.9"], {"default_": (0.0, 0.6, 0.9)}),
    ],
)
def test_shares_of_the_steps(texts, expected):
    args = parse("edit", CAT, TIGER, *(argument for text in texts for argument in ("--cross", text)))
    assert options.edit_options(args)["cross_replace"] == expected


@pytest.mark.parametrize(
    "arguments, expected",
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
def test_blend_words(arguments, expected):
    assert options.edit_options(parse("edit", CAT, TIGER, *arguments)).get("local_blend") == expected


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], {"Cross": "0.8", "Self": "0.4", "Kind": "auto"}),
        (
            ["--cross", ".6", "--cross", "tiger=.2", "--self", "0:.3", "--kind", "swap", "--reweight", "tiger=2"],
            {"Cross": ".6, tiger=.2", "Self": "0:.3", "Kind": "swap", "Reweight": "tiger=2"},
        ),
        (["--cross", "tiger=.2"], {"Cross": "0.8, tiger=.2", "Self": "0.4", "Kind": "auto"}),
        (
            ["--blend", "cat:tiger", "--threshold", "otsu", "--explicit", "--paste", "--polish", "3"],
            {
                "Cross": "0.8",
                "Self": "0.4",
                "Kind": "auto",
                "Blend": "cat:tiger",
                "Threshold": "otsu",
                "Explicit": True,
                "Paste": True,
                "Polish": 3,
            },
        ),
    ],
)
def test_settings_of_an_edit_for_its_png(arguments, expected):
    assert options.edit_settings(parse("edit", CAT, TIGER, *arguments)) == expected


def test_model_dtype_and_device_reach_load(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(options, "load", lambda *args, **kwargs: calls.append((args, kwargs)) or run_stops())
    assert run("generate", CAT, "--dtype", "bfloat16", "--device", "cpu:0", "--model", "m", "-o", tmp_path) == 7
    assert calls == [(("m",), {"dtype": torch.bfloat16, "device": "cpu:0", "vae": None, "config": None})]


def run_stops():
    raise SystemExit(7)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:.5", ("a.safetensors", 0.5)),
        ("folder:1/a.safetensors", ("folder:1/a.safetensors", 1.0)),
    ],
)
def test_a_lora_has_a_file_and_a_scale(text, expected):
    assert options.parse_lora(text) == expected


def test_loras_are_merged_in_order(monkeypatch):
    class Pipe:
        merges = ()

        def merged(self, file, scale):
            self.merges = (*self.merges, (file, scale))
            return self

    monkeypatch.setattr(options, "load", lambda *_, **__: Pipe())
    args = parse("generate", CAT, "--lora", "a.safetensors", "--lora", "b.safetensors:-.5")
    assert options.load_model(args).merges == (("a.safetensors", 1.0), ("b.safetensors", -0.5))


@pytest.mark.parametrize("source, expected", [(str(PHOTO), True), ("nothere.JPG", True), (CAT, False), ("v1.5", False)])
def test_what_looks_like_a_picture_file_is_no_prompt(source, expected):
    assert options.looks_like_picture_file(source) == expected
