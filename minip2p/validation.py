"""Checks of numbers that users pass in."""

import math
from numbers import Integral, Real
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether it is a whole number, Python's or numpy's. True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether it is a real number that is not NaN and not infinite in float32, the dtype of the computation."""
    if not isinstance(value, Real):
        return False
    try:
        return abs(float(value)) < 2.0**128
    except OverflowError:  # of an integer beyond float64
        return False


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Raises ValueError if the value is not a number in [0, below)."""
    if not is_finite(value) or not 0 <= value < below:
        limit = "" if below == math.inf else f", below {below}"
        raise ValueError(f"{name} must be a number from 0 on{limit}, not {value!r}")


def check_seed(seed: Any) -> None:
    """Raises ValueError if it is no seed of torch's generators, a whole number from 0 on that fits into 63 bits."""
    if not is_integer(seed) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number between 0 and 2^63 - 1, not {seed!r}")


def check_max_queries(self_max_queries: Any) -> None:
    """Raises ValueError if it is not a whole number from 0 on that fits into 63 bits."""
    if not is_integer(self_max_queries) or not 0 <= self_max_queries < 2**63:
        raise ValueError(f"self_max_queries must be a whole number from 0 on, not {self_max_queries!r}")
