"""Reads the fields of one JSON object and refuses, in a sentence, whatever this code cannot serve."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from services.runtime.errors import CheckpointError


class Fields:
    """One JSON object of a configuration file, read field by field.

    Every method returns a checked value or raises CheckpointError with file, field, expected and found.
    """

    def __init__(self, values: Mapping[str, Any], *, file: str, path: str = "") -> None:
        self._values = values
        self._file = file
        self._path = path

    def has(self, name: str) -> bool:
        """Whether the field is there and is not null."""
        return self._values.get(name) is not None

    def section(self, name: str) -> "Fields":
        """A nested object."""
        value = self._values.get(name)
        if not isinstance(value, Mapping):
            raise self.refusal(name, "an object")
        return Fields(value, file=self._file, path=f"{self._path}{name}.")

    def integer(self, name: str, *, least: int = 1, most: int | None = None) -> int:
        """A whole number in least..most."""
        value = self._values.get(name)
        upper = math.inf if most is None else most
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= upper:
            raise self.refusal(
                name, f"a whole number >= {least}" if most is None else f"a whole number {least}..{most}"
            )
        return value

    def integers(self, name: str, *, count: int) -> tuple[int, ...]:
        """A list of `count` positive whole numbers."""
        value = self._values.get(name)
        right = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count
        if not right or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value or ()):
            raise self.refusal(name, f"{count} positive whole numbers")
        return tuple(value or ())

    def number(self, name: str, *, above: float = -math.inf) -> float:
        """A finite number greater than `above`."""
        value = self._values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not above < value < math.inf:
            raise self.refusal(name, "a number" if above == -math.inf else f"a number > {above:g}")
        return float(value)

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._values.get(name)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def exactly(self, name: str, expected: object) -> None:
        """Insists on the one value that this code implements. A field that is absent counts as null."""
        value = self._values.get(name)
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            raise self.refusal(name, _say(expected))

    def refusal(self, name: str, expected: str) -> CheckpointError:
        """The error for a field: which file, which field, what was expected and what is there."""
        found = _say(self._values[name]) if name in self._values else "no such field"
        return CheckpointError(f"{self._file}: field {self._path}{name}: expected {expected}, found {found}")


def _say(value: object) -> str:
    text = "an object" if isinstance(value, Mapping) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
