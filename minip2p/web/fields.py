"""Reads the fields of a JSON object, each with its type and limits. Errors are ValueErrors that name the field."""

import json
import math
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
        if not isinstance(value, dict):
            raise ValueError(f"{what} must be a JSON object, not {type_name(value)}")
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
        value = self.value(name, default)
        return check_text(name, value, longest)

    def integer(self, name: str, low: int, high: int, default: Any = MISSING) -> int:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, not {shown(value)}")
        return value

    def number(self, name: str, low: float, high: float, default: Any = MISSING) -> float:
        return check_number(name, self.value(name, default), low, high)

    def optional_number(self, name: str, low: float, high: float) -> float | None:
        value = self.value(name, None)
        return None if value is None else check_number(name, value, low, high)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {shown(value)}")
        return value

    def items(self, name: str, most: int, default: Any = MISSING) -> list[Any]:
        """A list of at most so many values."""
        value = self.value(name, default)
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"{name} must be a list of at most {most} values, not {shown(value)}")
        return value


def check_text(name: str, value: Any, longest: int) -> str:
    """Raises ValueError for anything but a line of text of at most so many characters."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {type_name(value)}")
    if len(value) > longest:
        raise ValueError(f"{name} has {len(value)} characters, and {longest} are the most")
    if CONTROL.search(value):
        raise ValueError(f"{name} must be one line of text, without control characters")
    return value


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Raises ValueError for anything but a number from low to high."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or not math.isfinite(float(value)):
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {shown(value)}")
    return float(value)


def shown(value: Any) -> str:
    """A value for an error, not longer than a line."""
    text = type_name(value) if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def type_name(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = ((bool, "true or false"), (dict, "an object"), (list, "a list"), (str, "text"), (int | float, "a number"))
    return next((name for types, name in names if isinstance(value, types)), "null")
