"""The options of the command line, translated into arguments of the library.

Options that were not given are left out, so that the library's defaults apply. Each function raises ValueError with one
line for a value that it cannot read.
"""

import os
import re
import secrets
from argparse import Namespace
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch

from minip2p.attention.masks import check_threshold
from minip2p.cli.paths import RUN_SUFFIX
from minip2p.inversion.methods import METHODS
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.options import EditOptions
from minip2p.pipeline import Pipeline, load
from minip2p.sampling.settings import RunSettings
from minip2p.validation import is_finite

MAX_COUNT = 1000  # of --count
RANDOM_SEEDS = 2**32  # --seed random draws from so many, as other tools do
APPROXIMATIONS = ("guidance_interval", "uncond_every")
RUN_OPTIONS = ("steps", "guidance_scale", "negative_prompt", "clip_skip", "size", *APPROXIMATIONS)  # and the seed
OBJECT_OPTIONS = ("move", "resize", "duplicate", "remove")  # of an edit
INVERSION_OPTIONS = ("method", "skip", "fit", "vae_refine_steps")  # which need a photograph, as --fast does
FAST_METHOD = "virtual"  # of inversion, for --fast
DEFAULT_METHOD = signature(Pipeline.invert).parameters["method"].default


# --- the model


def load_model(args: Namespace) -> Pipeline:
    """Loads the model that the options name, with its LoRAs merged and its embeddings added.

    Replaces --fast by --method and --steps.
    """
    pipe = load(
        args.model,
        dtype=getattr(torch, args.dtype),
        device=args.device,
        vae=args.vae,
        config=args.config,
        scheduler=args.scheduler,
    )
    for text in args.lora:
        file, scale = parse_lora(text)
        pipe = pipe.merged(file, scale)
    for file in args.embedding:
        pipe = pipe.with_embedding(file)
    if getattr(args, "fast", None):  # how many steps are few depends on the model
        args.method, args.steps = FAST_METHOD, pipe.scheduler.few_steps if args.steps is None else args.steps
    return pipe


def parse_lora(text: str) -> tuple[str, float]:
    """'a.safetensors' -> ('a.safetensors', 1.0); 'a.safetensors:.5' -> ('a.safetensors', 0.5)."""
    file, colon, scale = text.rpartition(":")
    if not colon or text.endswith(RUN_SUFFIX) or os.path.exists(text):
        return text, 1.0
    try:
        return file, float(scale)
    except ValueError:
        raise ValueError(f"--lora {text}: the scale after the colon must be a number") from None


# --- runs


def seeds_to_run(args: Namespace) -> list[int | None]:
    """The seeds of --seed and --count; [None] where neither was given."""
    texts, count = (f"{RunSettings.seed}" if args.seed is None else args.seed).split(","), args.count
    if args.seed is None and count is None:
        return [None]
    if args.seed == "random":
        first = secrets.randbelow(RANDOM_SEEDS)
    elif all(re.fullmatch(r"\s*[0-9]+\s*", text) for text in texts):
        first = int(texts[0])
    else:
        raise ValueError(f"--seed is a whole number from 0 on, several as 1,2,3, or random, not {args.seed!r}")
    if count is None:
        seeds = [first, *map(int, texts[1:])]
        if twice := [seed for n, seed in enumerate(seeds) if seed in seeds[:n]]:
            raise ValueError(f"--seed {args.seed} has {twice[0]} twice, and would make the same picture twice")
        RunSettings(seed=max(seeds))  # raises before the first seed is run
        return [*seeds]
    if len(texts) > 1:
        raise ValueError(f"--count counts on from one seed, and --seed {args.seed} has {len(texts)}: give one of them")
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"--count must lie between 1 and {MAX_COUNT}, and is {count}")
    RunSettings(seed=first + count - 1)
    return list(range(first, first + count))


def run_options(args: Namespace, seed: int | None = None) -> dict[str, Any]:
    """The options of a run that were given, as keywords of `Pipeline.generate`. seed: one of `seeds_to_run`."""
    values = {"seed": seed, **{name: getattr(args, name) for name in RUN_OPTIONS}}
    interval = None if args.guidance_interval is None else parse_interval(args.guidance_interval)
    size = None if args.size is None else parse_size(args.size)
    return without_none(values | {"size": size, "guidance_interval": interval})


class Size(tuple[int, ...]):
    """Rows and columns, which errors print as the command line has them."""

    def __str__(self) -> str:
        return "x".join(map(str, self))


def parse_size(text: str) -> Size:
    """'128x96' -> (128, 96), rows and columns."""
    rows, separator, columns = text.lower().partition("x")
    if not (separator and rows.isdecimal() and columns.isdecimal()):
        raise ValueError(f"--size is rows x columns in pixels, as 128x96, not {text!r}")
    return Size((int(rows), int(columns)))


def parse_interval(text: str) -> tuple[float, ...]:
    """'.2:.8' -> (0.2, 0.8)."""
    try:
        numbers = parse_numbers(text)
    except ValueError:
        numbers = 0.0
    if not isinstance(numbers, tuple) or len(numbers) != 2:
        raise ValueError(f"--guidance-interval is two shares of the steps, as .2:.8, not {text!r}")
    return numbers


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# --- inversions of photographs


def invert_options(args: Namespace) -> dict[str, Any]:
    """The options of an inversion that were given, as keywords of `Pipeline.invert`."""
    return without_none({name: getattr(args, name) for name in INVERSION_OPTIONS})


def inversion_settings(args: Namespace, seed: int | None) -> dict[str, Any]:
    """The settings of an inversion for its PNG, written as on the command line. --fit is for masks as well.

    seed: of the noise; None where none was given.
    """
    noise = None if args.prompt is None else method_parameters(args).get("seed")
    values = {
        "Seed": None if noise is None else noise.default if seed is None else seed,
        "Skip": None if args.skip is None else f"{args.skip:g}",
        "Polish": args.vae_refine_steps or None,
        "Fit": args.fit,
    }
    return without_none(values)


def method_parameters(args: Namespace) -> Mapping[str, Parameter]:
    """The parameters of the method of inversion that the options name."""
    return signature(METHODS[method_of(args)]).parameters


def method_of(args: Namespace) -> str:
    """The method of inversion that the options name."""
    return FAST_METHOD if args.fast else args.method or DEFAULT_METHOD


# --- edits


def edit_options(args: Namespace) -> dict[str, Any]:
    """The options of an edit, as keywords of `Pipeline.edit`, except for its masks, which depend on its size."""
    if args.local_blend is not None and args.mask is not None:
        raise ValueError("--blend finds the place that may change by words, --mask by a picture: give one of them")
    if args.threshold is not None and args.local_blend is None:
        raise ValueError("--threshold is for the heat maps of --blend: give a word with --blend")
    values = {
        "cross_replace": None if args.cross_replace is None else cross_replace(args.cross_replace),
        "self_replace": None if args.self_replace is None else parse_share("--self", args.self_replace),
        "kind": args.kind,
        "reweight": {word: parse_weight(word, value) for word, value in split_by_word(args.reweight).items()},
        "local_blend": local_blend(args),
        "explicit": args.explicit,
    }
    return without_none(values | object_options(args))


def object_options(args: Namespace) -> dict[str, Any]:
    """--move, --resize, --duplicate and --remove, as keywords of `Pipeline.edit`; None for those that are not given."""
    moves = {
        name: once_each(f"--{name}", [parse_move(f"--{name}", text) for text in getattr(args, name)])
        for name in ("move", "duplicate")
    }
    scales = once_each("--resize", [parse_scale(text) for text in args.resize])
    values: dict[str, Any] = {"move": moves["move"], "resize": scales, "duplicate": moves["duplicate"]}
    return {name: value or None for name, value in (values | {"remove": args.remove}).items()}


def once_each(flag: str, values: list[tuple[str, Any]]) -> dict[str, Any]:
    """The values by their words. Raises ValueError for a word that is named twice. flag: of the option."""
    words = [word for word, _ in values]
    if twice := [word for n, word in enumerate(words) if word in words[:n]]:
        raise ValueError(f"{flag} names {twice[0]!r} twice: give it once")
    return dict(values)


def parse_move(flag: str, text: str) -> tuple[str, tuple[float, float]]:
    """'cat:32,0' -> ('cat', (32.0, 0.0)). flag: of the option, for the message."""
    word, _, shift = text.rpartition(":")
    try:
        x, y = map(float, shift.split(","))
    except ValueError:
        word = ""
    if not word:
        raise ValueError(f"{flag} takes a word and x,y in pixels, to the right and down, as cat:32,0, not {text!r}")
    return word, (x, y)


def parse_scale(text: str) -> tuple[str, float]:
    """'cat:1.5' -> ('cat', 1.5)."""
    word, _, number = text.rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        word = ""
    if not word:
        raise ValueError(f"--resize takes a word and a factor of its size, as cat:1.5, not {text!r}")
    return word, scale


def cross_replace(texts: Sequence[str]) -> dict[str, Any]:
    """['.5', 'cat=.4'] -> {'default_': 0.5, 'cat': 0.4}. The words that are not named have the default of an edit."""
    shares = {word or "default_": parse_share("--cross", value) for word, value in split_by_word(texts).items()}
    return {"default_": EditOptions.cross_replace} | shares


def local_blend(args: Namespace) -> LocalBlend | None:
    """The blend of --blend and --threshold."""
    if args.local_blend is None:
        return None
    source, colon, target = args.local_blend.partition(":")
    if not source or (colon and not target):
        raise ValueError(f"--blend is a word, or source:target, not {args.local_blend!r}")
    threshold = {} if args.threshold is None else {"threshold": parse_threshold(args.threshold)}
    return LocalBlend((source,), (target if colon else source,), **threshold)


def edit_settings(args: Namespace) -> dict[str, str]:
    """The settings of an edit for its PNG, written as on the command line."""

    def join(texts: Sequence[str]) -> str:
        return ", ".join(f"{word}={value}" if word else value for word, value in split_by_word(texts).items())

    values = {
        "Instruction": args.tell,
        "Cross": join([f"{EditOptions.cross_replace}", *(args.cross_replace or ())]),
        "Self": args.self_replace or f"{EditOptions.self_replace}",
        "Kind": args.kind or EditOptions.kind,
        "Reweight": join(args.reweight),
        "Blend": args.local_blend,
        "Threshold": args.threshold,
        "Mask": args.mask,
        "Within": args.region,
        **{name.capitalize(): ", ".join(getattr(args, name)) for name in OBJECT_OPTIONS},
        "Explicit": args.explicit,
        "Paste": args.paste,
    }
    return {name: value for name, value in values.items() if value}


def split_by_word(texts: Sequence[str]) -> dict[str, str]:
    """['.8', 'cat=.4'] -> {'': '.8', 'cat': '.4'}. Of several values for the same word, the last one counts."""
    return {word: value for word, _, value in (text.rpartition("=") for text in texts)}


def parse_share(flag: str, text: str) -> Any:
    """'.8' -> 0.8, '.2:.8' -> (0.2, 0.8), '0:.6:.9' -> (0.0, 0.6, 0.9). flag: of the option, for the message."""
    try:
        return parse_numbers(text)
    except ValueError:
        raise ValueError(f"{flag} is a share of the steps, a number as .8, or two as .2:.8, not {text!r}") from None


def parse_threshold(text: str) -> Any:
    """'.3' -> 0.3, '.2:.5' -> (0.2, 0.5); 'otsu' and '85%' stay as they are."""
    try:
        threshold = text if text == "otsu" or text.endswith("%") else parse_numbers(text)
        check_threshold("--threshold", threshold)
    except ValueError:
        message = f"--threshold is a number in 0 to 1, as .3, two as .2:.5, otsu, or a percentage as 85%, not {text!r}"
        raise ValueError(message) from None
    return threshold


def parse_numbers(text: str) -> float | tuple[float, ...]:
    """Numbers separated by colons; a single number is not wrapped in a tuple."""
    numbers = tuple(float(number) for number in text.split(":"))
    return numbers if len(numbers) > 1 else numbers[0]


def parse_weight(word: str, text: str) -> float:
    """The weight of --reweight WORD=WEIGHT."""
    try:
        weight = float(text)
    except ValueError:
        weight = None
    if not word or weight is None or "=" in word:
        raise ValueError(f"--reweight takes a word and its weight, as fog=2, not {f'{word}={text}' if word else text}")
    if not is_finite(weight):
        raise ValueError(f"--reweight {word}={text}: the weight must be a finite number")
    return weight


# --- files


def run_file_path(name: str) -> Path:
    """The path of a run's file."""
    if not name.lower().endswith(RUN_SUFFIX):
        raise ValueError(f"{name}: the name of a run's file must end in {RUN_SUFFIX}")
    return Path(name)
