"""The options of the command line as arguments of the library."""

import re

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
    args = parse("generate", CAT, "--steps", 3, "--guidance", 0, "--negative", "", "--size", "64x96", "--clip-skip", 2)
    expected = {"steps": 3, "guidance_scale": 0.0, "negative_prompt": "", "size": (64, 96), "clip_skip": 2}
    assert options.run_options(args) == expected
    assert options.run_options(args, 0) == {"seed": 0, **expected}
    assert options.run_options(parse("invert", PHOTO, CAT, "--steps", 3)) == {"steps": 3}
    args = parse("edit", CAT, TIGER, "--guidance-interval", ".1:.8", "--uncond-every", 2)
    assert options.run_options(args) == {"guidance_interval": (0.1, 0.8), "uncond_every": 2}


def test_invert_options():
    args = parse("invert", PHOTO, CAT, "--method", "virtual", "--skip", 0.2, "--fit", "stretch", "--polish", 2)
    expected = {"method": "virtual", "skip": 0.2, "fit": "stretch", "vae_refine_steps": 2}
    assert options.invert_options(args) == expected


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
            ["--blend", "cat:tiger", "--threshold", "otsu", "--explicit", "--paste"],
            {
                "Cross": "0.8",
                "Self": "0.4",
                "Kind": "auto",
                "Blend": "cat:tiger",
                "Threshold": "otsu",
                "Explicit": True,
                "Paste": True,
            },
        ),
    ],
)
def test_settings_of_an_edit_for_its_png(arguments, expected):
    assert options.edit_settings(parse("edit", CAT, TIGER, *arguments)) == expected


@pytest.mark.parametrize(
    "arguments, seed, expected",
    [
        ([], None, {}),
        (["--method", "edit-friendly"], None, {"Seed": 0}),
        (["--method", "virtual", "--skip", ".20"], 3, {"Seed": 3, "Skip": "0.2"}),
        (["--fast", "--polish", "3", "--fit", "stretch"], 2, {"Seed": 2, "Polish": 3, "Fit": "stretch"}),
    ],
)
def test_settings_of_an_inversion_for_its_png(arguments, seed, expected):
    for command in (("invert", PHOTO, CAT), ("edit", PHOTO, TIGER, "--prompt", CAT), ("maps", PHOTO, "--prompt", CAT)):
        assert options.inversion_settings(parse(*command, *arguments), seed) == expected
    assert options.inversion_settings(parse("edit", CAT, TIGER), 3) == {}


def test_model_dtype_device_and_scheduler_reach_load(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(options, "load", lambda *args, **kwargs: calls.append((args, kwargs)) or run_stops())
    model = "--dtype", "bfloat16", "--device", "cpu:0", "--model", "m", "--scheduler", "lcm"
    assert run("generate", CAT, *model, "-o", tmp_path) == 7
    expected = {"dtype": torch.bfloat16, "device": "cpu:0", "vae": None, "config": None, "scheduler": "lcm"}
    assert calls == [(("m",), expected)]


def run_stops():
    raise SystemExit(7)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:.5", ("a.safetensors", 0.5)),
        ("folder:1/a.safetensors", ("folder:1/a.safetensors", 1.0)),
        ("org/name:.5", ("org/name", 0.5)),
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


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], [None]),
        (["--seed", "3"], [3]),
        (["--seed", "3,1, 2"], [3, 1, 2]),
        (["--count", 3], [0, 1, 2]),
        (["--seed", "7", "--count", 2], [7, 8]),
    ],
)
def test_seeds(arguments, expected):
    assert options.seeds_to_run(parse("generate", CAT, *arguments)) == expected


def test_random_seeds_differ_and_count_on():
    args = parse("generate", CAT, "--seed", "random", "--count", 3)
    first, second = options.seeds_to_run(args), options.seeds_to_run(args)
    assert first != second and first == list(range(first[0], first[0] + 3)) and 0 <= first[0] < 2**32


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seed", "one"], "--seed is a whole number from 0 on, several as 1,2,3, or random, not 'one'"),
        (["--seed=-1"], "several as 1,2,3, or random, not '-1'"),
        (["--seed", "1,"], "not '1,'"),
        (["--seed", ""], "not ''"),
        (["--seed", "1.5"], "not '1.5'"),
        (["--seed", "²"], "not '²'"),
        (["--count", 0], "--count must lie between 1 and 1000, and is 0"),
        (["--count", 1001], "--count must lie between 1 and 1000, and is 1001"),
        (["--seed", f"{2**63 - 1}", "--count", 2], "seed must lie between 0 and 2^63 - 1, not 9223372036854775808"),
        (["--seed", f"1,{2**63},2"], "seed must lie between 0 and 2^63 - 1, not 9223372036854775808"),
        (["--seed", "3,1, 2,01"], "--seed 3,1, 2,01 has 1 twice, and would make the same picture twice"),
        (["--seed", "1,2", "--count", 2], "--count counts on from one seed, and --seed 1,2 has 2: give one of them"),
    ],
)
def test_seeds_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        options.seeds_to_run(parse("generate", CAT, *arguments))
