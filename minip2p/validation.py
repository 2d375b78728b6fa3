"""TODO: describe."""

import math
from numbers import Integral, Real
from typing import Any


def is_integer(given: Any) -> bool:
    """Whether it is a whole number, Python's or numpy's."""
    return isinstance(given, Integral)


def is_finite(given: Any) -> bool:
    """Whether it is a number, and neither infinite (in float32, which we compute in) nor NaN."""
    return isinstance(given, Real) and bool(abs(given) < 2.0**128)  # type: ignore[operator]


def check_number(name: str, given: Any, below: float = math.inf) -> None:
    if not is_finite(given) or not 0 <= given < below:
        raise ValueError(
            f"{name} must be a number from 0 on{'' if below == math.inf else f', below {below}'}, not {given!r}"
        )


def check_max_queries(self_pixels: Any) -> None:
    """Raises ValueError."""
    if not is_integer(self_pixels) or not 0 <= self_pixels < 2**63:
        raise ValueError(f"self_pixels is a whole number from 0 on, not {self_pixels!r}")
