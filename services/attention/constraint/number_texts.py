"""Short texts of numbers within the bounds of a schema."""

import math
from collections.abc import Iterator

from services.attention.constraint.json_schemas import Schema, Way

MAX_DIGITS = 20


def number_rest(way: Way, begun: str) -> str | None:
    """The shortest text that makes a whole number within the bounds of one that has begun; None if there is none."""
    low = max((bound for part in way for bound in _lower_bounds(part)), default=-math.inf)
    high = min((bound for part in way for bound in _upper_bounds(part)), default=math.inf)
    steps = [part["multipleOf"] for part in way if "multipleOf" in part]
    if any(step <= 0 or not float(step).is_integer() for step in steps):
        return None
    step = math.lcm(*map(int, steps)) if steps else 1
    digits = begun.removeprefix("-")
    if not (digits.isdecimal() or not digits) or (digits.startswith("0") and begun != "0"):
        return None
    for size in range(0 if digits else 1, 1 if digits == "0" else MAX_DIGITS):
        first = int(digits or "0") * 10**size
        for sign in (-1,) if begun.startswith("-") else (1,) if digits else (1, -1):
            bottom, top = sorted((sign * first, sign * (first + 10**size - 1)))
            least = max(bottom, low)
            number = -(-int(least) // step) * step
            if least <= number <= min(top, high) and (text := f"{number}").startswith(begun):
                return text[len(begun) :]
    return None


def fraction(way: Way) -> str | None:
    """A short decimal fraction within bounds between which there is no whole number; None if there is none."""
    low = max((part[key] for part in way for key in ("minimum", "exclusiveMinimum") if key in part), default=None)
    high = min((part[key] for part in way for key in ("maximum", "exclusiveMaximum") if key in part), default=None)
    if low is None or high is None or any("multipleOf" in part for part in way):
        return None
    for digits in range(1, MAX_DIGITS):
        number = (math.floor(low * 10**digits) + 1) / 10**digits
        if low < number < high:
            return f"{number:.{digits}f}"
    return None


def _lower_bounds(part: Schema) -> Iterator[int]:
    if "minimum" in part:
        yield math.ceil(part["minimum"])
    if "exclusiveMinimum" in part:
        yield math.floor(part["exclusiveMinimum"]) + 1


def _upper_bounds(part: Schema) -> Iterator[int]:
    if "maximum" in part:
        yield math.floor(part["maximum"])
    if "exclusiveMaximum" in part:
        yield math.ceil(part["exclusiveMaximum"]) - 1
