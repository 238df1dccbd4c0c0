"""Parameters of a test as a full product, of which `make quick` runs a subset that contains every pair of values."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*axes: Sequence[Any]) -> list[Any]:
    """Return every combination of one value per axis; those outside the pairwise subset are marked `slow`.

    A tuple among the values sets several arguments.
    """
    places = list(product(*(range(len(axis)) for axis in axes)))
    chosen = _covering(places)
    return [_case(axes, place, quick=place in chosen) for place in places]


def _covering(places: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Choose combinations greedily until every pair of values of two axes occurs."""
    pairs = {place: set(combinations(enumerate(place), 2)) for place in places}
    missing = set().union(*pairs.values())
    chosen: set[tuple[int, ...]] = set()
    while missing:
        best = max(places, key=lambda place: len(pairs[place] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return chosen


def _case(axes: Sequence[Sequence[Any]], place: tuple[int, ...], *, quick: bool) -> Any:
    values = [axis[index] for axis, index in zip(axes, place, strict=True)]
    flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    name = "-".join(str(part).replace(" ", "") for part in flat)
    return pytest.param(*flat, id=name, marks=() if quick else pytest.mark.slow)
