"""What the options of the command line say, as the functions of the library take it. Each raises ValueError with one
clear line for what it cannot read."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any


def run_options(args: Namespace) -> dict[str, Any]:
    """Those of the options that all commands share that are given, as `Model.generate` takes them."""
    given = {name: getattr(args, name, None) for name in ("seed", "steps", "guidance", "negative")}
    given["size"] = None if args.size is None else size_of(args.size)
    return {name: value for name, value in given.items() if value is not None}


def invert_options(args: Namespace) -> dict[str, Any]:
    """Those of an inversion that are given, as `Model.invert` takes them."""
    return {name: value for name in ("method", "fit") if (value := getattr(args, name)) is not None}


def edit_options(args: Namespace) -> dict[str, Any]:
    """The options of an edit, as `Model.edit` takes them."""
    source, sign, target = (args.blend or "").partition(":")
    return {
        "cross": {word or "default_": share(value) for word, value in by_word(args.cross).items()},
        "self_": share(args.self_),
        "kind": args.kind,
        "reweight": {word: weight(word, value) for word, value in by_word(args.reweight).items()},
        "blend": (source, target) if sign else args.blend,
        "explicit": args.explicit,
    }


def settings(args: Namespace) -> dict[str, str]:
    """An edit's settings for its PNG, in the words of the command line."""

    def joined(given: Mapping[str, str]) -> str:
        return ", ".join(f"{word}={value}" if word else value for word, value in given.items())

    given = {"Cross": joined(by_word(args.cross)), "Self": args.self_, "Kind": args.kind,
                "Reweight": joined(by_word(args.reweight)), "Blend": args.blend, "Explicit": args.explicit}  # fmt: skip
    return {name: value for name, value in given.items() if value}


def by_word(given: Sequence[str]) -> dict[str, str]:
    """['.8', 'cat=.4'] -> {'': '.8', 'cat': '.4'}; of two for the same word the last."""
    return {word: value for word, _, value in (text.rpartition("=") for text in given)}


def share(text: str) -> Any:
    """'.8' -> 0.8 and '.2:.8' -> (0.2, 0.8). Raises ValueError."""
    try:
        numbers = tuple(float(part) for part in text.split(":", 1))
    except ValueError:
        raise ValueError(f"a share of the run is a number as .8, or two as .2:.8, not {text!r}") from None
    return numbers if len(numbers) == 2 else numbers[0]


def weight(word: str, text: str) -> float:
    """Raises ValueError where the word is missing or the weight is no number."""
    try:
        number = float(text)
    except ValueError:
        number = None
    if not word or number is None:
        raise ValueError(f"--reweight takes a word and its weight, as fog=2, not {f'{word}={text}' if word else text}")
    return number


def size_of(text: str) -> tuple[int, int]:
    """'128x96' -> (128, 96): rows, columns. Raises ValueError."""
    rows, sign, columns = text.partition("x")
    if not (sign and rows.isdecimal() and columns.isdecimal()):
        raise ValueError(f"--size is rows x columns in pixels, as 128x96, not {text!r}")
    return int(rows), int(columns)
