"""Reads the fields of a JSON object, each with its type and limits. Errors are ValueErrors that name the field."""

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\u2028\u2029]")
MISSING = object()


def parse_json(body: bytes) -> Any:
    """A JSON value. Raises ValueError for anything else, NaN, infinity, and numbers without end among them."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request cannot be read as JSON ({error})") from None


class Fields:
    """The fields of a JSON object, read and checked one by one.

    what: what the object is, for errors. Raises ValueError for another type, and for fields that are not in `known`.
    """

    def __init__(self, value: Any, known: Sequence[str], what: str = "the request"):
        check(what, value, isinstance(value, dict), "a JSON object")
        if unknown := [name for name in value if name not in known]:
            raise ValueError(f"{what} has no {unknown[0][:40]!r}; it has {', '.join(known)}")
        self.values, self.what = value, what

    def value(self, name: str, default: Any = MISSING) -> Any:
        value = self.values.get(name, default)
        if value is MISSING:
            raise ValueError(f"{self.what} needs {name!r}")
        return value

    def text(self, name: str, longest: int, default: Any = MISSING) -> str:
        """One line of text."""
        return check_text(name, self.value(name, default), longest)

    def integer(self, name: str, low: int, high: int, default: Any = MISSING) -> int:
        value = self.value(name, default)
        is_valid = type(value) is int and low <= value <= high
        return int(check(name, value, is_valid, f"a whole number from {low} to {high}"))

    def number(self, name: str, low: float, high: float, default: Any = MISSING) -> float:
        return check_number(name, self.value(name, default), low, high)

    def optional_number(self, name: str, low: float, high: float) -> float | None:
        value = self.value(name, None)
        return None if value is None else check_number(name, value, low, high)

    def flag(self, name: str) -> bool:
        value = self.value(name, False)
        return bool(check(name, value, isinstance(value, bool), "true or false"))

    def items(self, name: str, most: int, default: Any = MISSING) -> list[Any]:
        """A list of at most so many values."""
        value = self.value(name, default)
        is_valid = isinstance(value, list) and len(value) <= most
        return list(check(name, value, is_valid, f"a list of at most {most} values"))


def check(name: str, value: Any, is_valid: bool, what: str) -> Any:
    """The value. Raises ValueError where it is not valid. what: what it has to be."""
    if not is_valid:
        shown = repr(value)
        raise ValueError(f"{name} must be {what}, not {shown if len(shown) <= 40 else f'{shown[:40]}…'}")
    return value


def check_text(name: str, value: Any, longest: int) -> str:
    """Raises ValueError for anything but a line of text of at most so many characters."""
    check(name, value, isinstance(value, str), "text")
    if len(value) > longest:
        raise ValueError(f"{name} has {len(value)} characters, and {longest} are the most")
    if CONTROL.search(value):
        raise ValueError(f"{name} must be one line of text, without control characters")
    return str(value)


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Raises ValueError for anything but a number from low to high."""
    is_valid = type(value) in (int, float) and low <= value <= high
    return float(check(name, value, is_valid, f"a number from {low:g} to {high:g}"))
