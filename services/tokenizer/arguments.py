"""The arguments of one tool call while they arrive (TEMPLATE.md), and the repair of twice encoded ones."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClosedArguments:
    """Arguments that have ended.

    rest       text that was not streamed yet
    is_valid   the whole text is JSON
    keys       the keys of the JSON object that the text is; None if it is none, also if nothing was written
    """

    rest: str
    is_valid: bool
    keys: list[str] | None


class ArgumentText:
    """Stream the text of arguments as it comes, without white space around it.

    Text that begins with a double quote is held until the end: it may be a JSON string around the real object.
    `hold` holds all text until the end.
    """

    def __init__(self, *, hold: bool) -> None:
        self._hold = hold
        self._whole: list[str] = []
        self._space: list[str] = []

    def add(self, text: str) -> str:
        """Return the text that can be streamed now."""
        if not self._whole:
            text = text.lstrip()
            self._hold = self._hold or text.startswith('"')
        body = text.rstrip()
        if not body:
            self._space.append(text)
            return ""
        ready = "".join([*self._space, body]) if self._whole else body
        self._space = [text[len(body) :]]
        self._whole.append(ready)
        return "" if self._hold else ready

    def close(self) -> ClosedArguments:
        """Return the rest; empty arguments become `{}`, and an object inside a JSON string becomes the object."""
        text = "".join(self._whole)
        if not text:
            return ClosedArguments("{}", is_valid=True, keys=None)
        value = _parse(text)
        if isinstance(value, str):
            inner = _parse(value)
            if isinstance(inner, dict) and _is_unicode(value):
                text, value = value.strip(), inner
        keys = list(value) if isinstance(value, dict) else None
        return ClosedArguments(text if self._hold else "", is_valid=not isinstance(value, _Invalid), keys=keys)


def _is_unicode(text: str) -> bool:
    """Return whether no half of a surrogate pair is in the text: JSON escapes can write one, UTF-8 cannot."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


class _Invalid:
    """Stands for the value of a text that is no JSON."""


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")


# Numbers stay text: only the shape matters, and Python refuses very long integers.
_DECODER = json.JSONDecoder(parse_int=lambda _: 0, parse_float=lambda _: 0.0, parse_constant=_refuse)


def _parse(text: str) -> Any:
    try:
        return _DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return _Invalid()
