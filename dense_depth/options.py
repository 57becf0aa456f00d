"""Bounds of the numbers that a user may give."""

import math
import operator
from collections.abc import Mapping
from typing import Any

from dense_depth import InputError

NO_BOUNDS: Mapping[str, float] = {}


def check_options(
    options: Any,
    least: Mapping[str, float] = NO_BOUNDS,
    below: Mapping[str, float] = NO_BOUNDS,
    *,
    above: Mapping[str, float] = NO_BOUNDS,
    most: Mapping[str, float] = NO_BOUNDS,
) -> None:
    """Refuses options that are out of range, no number or infinite; None, which is not given, is not looked at.

    Args:
        options: With the options as attributes, each a number, several numbers, or None.
        least: By name, the least that they may be.
        below: By name, what they must be below.
        above: By name, what they must be above.
        most: By name, the most that they may be.

    Raises:
        InputError: Naming the first option that is out of range, and its bound.
    """
    checks = (
        (least, operator.ge, "at least"),
        (above, operator.gt, "above"),
        (most, operator.le, "at most"),
        (below, operator.lt, "below"),
    )
    for bounds, holds, words in checks:
        for name, bound in bounds.items():
            value = getattr(options, name)
            numbers = value if isinstance(value, tuple) else (value,)
            for number in numbers:
                if number is None:
                    continue
                if not holds(number, bound):  # NaN holds nothing
                    raise InputError(f"{option_name(name)} {number}: must be {words} {bound:g}")
                if math.isinf(number):
                    raise InputError(f"{option_name(name)} {number}: must be {words} {bound:g}, and finite")


def option_name(field: str) -> str:
    """How a user writes an option."""
    return f"--{field.replace('_', '-')}"
