"""What the options of the command line say, as the functions of the library take it. Each raises ValueError with one
clear line for what it cannot read."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from minip2p.p2p.local_blend import LocalBlend

RUN_SUFFIX = ".safetensors"  # how the name of a run's file ends


def run_options(args: Namespace) -> dict[str, Any]:
    """Those of the options that all commands share that are given, as `Model.generate` takes them."""
    given = {name: getattr(args, name, None) for name in ("seed", "steps", "guidance", "negative")}
    given["size"] = None if args.size is None else parse_size(args.size)
    return {name: value for name, value in given.items() if value is not None}


def invert_options(args: Namespace) -> dict[str, Any]:
    """Those of an inversion that are given, as `Model.invert` takes them."""
    return {name: value for name in ("method", "fit", "polish") if (value := getattr(args, name)) is not None}


def edit_options(args: Namespace) -> dict[str, Any]:
    """The options of an edit, as `Model.edit` takes them; but its masks, which are to be read for its size."""
    if args.blend is not None and args.mask is not None:
        raise ValueError("--blend says by words where the picture may change, --mask by a picture: give one of them")
    if args.threshold is not None and args.blend is None:
        raise ValueError("--threshold is of the maps that --blend reads: say of which word")
    return {
        "cross": {word or "default_": parse_share(value) for word, value in split_by_word(args.cross).items()},
        "self_": parse_share(args.self_),
        "kind": args.kind,
        "reweight": {word: parse_weight(word, value) for word, value in split_by_word(args.reweight).items()},
        "blend": local_blend(args),
        "explicit": args.explicit,
    }


def local_blend(args: Namespace) -> LocalBlend | None:
    """--blend, by the threshold."""
    if args.blend is None:
        return None
    source, sign, target = args.blend.partition(":")
    given = {} if args.threshold is None else {"threshold": parse_threshold(args.threshold)}
    return LocalBlend((source,), (target if sign else source,), **given)


def parse_threshold(text: str) -> Any:
    """'.3' -> 0.3, '.2:.5' -> (0.2, 0.5); 'otsu' and '85%' as they are. Raises ValueError."""
    if text == "otsu" or text.endswith("%"):
        return text
    try:
        numbers = tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"--threshold is a number as .3, two as .2:.5, otsu or a percentage, not {text!r}") from None
    return numbers if len(numbers) > 1 else numbers[0]


def edit_settings(args: Namespace) -> dict[str, str]:
    """An edit's settings for its PNG, in the words of the command line."""

    def joined(given: Mapping[str, str]) -> str:
        return ", ".join(f"{word}={value}" if word else value for word, value in given.items())

    given = {
        "Cross": joined(split_by_word(args.cross)),
        "Self": args.self_,
        "Kind": args.kind,
        "Reweight": joined(split_by_word(args.reweight)),
        "LocalBlend": args.blend,
        "Threshold": args.threshold,
        "Mask": args.mask,
        "Within": args.within,
        "Explicit": args.explicit,
        "Paste": args.paste,
        "Polish": args.polish,
        "Fit": args.fit,
    }
    return {name: value for name, value in given.items() if value}


def split_by_word(given: Sequence[str]) -> dict[str, str]:
    """['.8', 'cat=.4'] -> {'': '.8', 'cat': '.4'}; of two for the same word the last."""
    return {word: value for word, _, value in (text.rpartition("=") for text in given)}


def parse_share(text: str) -> Any:
    """'.8' -> 0.8, '.2:.8' -> (0.2, 0.8), '0:.6:.9' -> (0, 0.6, 0.9). Raises ValueError."""
    try:
        numbers = tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"a share of the run is a number as .8, or two as .2:.8, not {text!r}") from None
    return numbers if len(numbers) > 1 else numbers[0]


def parse_weight(word: str, text: str) -> float:
    """Raises ValueError where the word is missing or the weight is no number."""
    try:
        number = float(text)
    except ValueError:
        number = None
    if not word or number is None:
        raise ValueError(f"--reweight takes a word and its weight, as fog=2, not {f'{word}={text}' if word else text}")
    return number


def parse_size(text: str) -> tuple[int, int]:
    """'128x96' -> (128, 96): rows, columns. Raises ValueError."""
    rows, sign, columns = text.partition("x")
    if not (sign and rows.isdecimal() and columns.isdecimal()):
        raise ValueError(f"--size is rows x columns in pixels, as 128x96, not {text!r}")
    return int(rows), int(columns)


def looks_like_picture_file(source: str) -> bool:
    """Whether it is a file, or is called as a picture is: no prompt."""
    return os.path.isfile(source) or Path(source).suffix.lower() in Image.registered_extensions()


def run_file_path(name: str) -> Path:
    """Raises ValueError for a name that is not of a run's file."""
    if not name.endswith(RUN_SUFFIX):
        raise ValueError(f"{name}: the file of a run ends in {RUN_SUFFIX}")
    return Path(name)
