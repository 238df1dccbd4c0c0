"""JSON with a bounded number of values and a bounded depth: a small body may unfold to gigabytes of objects."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from gateway.http.errors import BodyTooLarge
from services.runtime.errors import InvalidRequest

MARK = re.compile(rb'[\[{,"]')
# Up to the end of a string, or of the piece that is looked at; `\x` is one step, so that no quote is misread.
STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
PIECE_BYTES = 1 << 20  # in one step: other threads run in between
FIELD_STEPS = 4
STEP_CHARS = 60

_Path: TypeAlias = tuple["_Path", str] | None


@dataclass(frozen=True, slots=True)
class JsonBounds:
    """Most values of all kinds, most objects and lists among them, and how deep these may nest."""

    max_values: int
    max_containers: int
    max_depth: int


def load_object(raw: bytes, bounds: JsonBounds) -> dict[str, Any]:
    """Parse a JSON object.

    Raises InvalidRequest if it is none or nests too deep, BodyTooLarge if it has too many values; the first excess
    ends the count.
    """
    _check_numbers(raw, bounds)
    try:
        decoded = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if "depth" in error.msg:
            raise InvalidRequest(f"the body nests more than {bounds.max_depth} deep, which is the limit") from error
        raise InvalidRequest(f"the body is not valid JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(decoded, dict):
        raise InvalidRequest("the body must be a JSON object")
    if _count(raw, b"[") + _count(raw, b"{") > bounds.max_depth:
        _check_depth(decoded, bounds.max_depth)
    return decoded


def _count(raw: bytes, mark: bytes) -> int:
    return sum(raw.count(mark, at, at + PIECE_BYTES) for at in range(0, len(raw), PIECE_BYTES))


def _check_numbers(raw: bytes, bounds: JsonBounds) -> None:
    # Also counts what stands in strings. Enough for nearly all bodies, and as fast as memory.
    num_containers = _count(raw, b"[") + _count(raw, b"{")
    if num_containers <= bounds.max_containers and num_containers + _count(raw, b",") <= bounds.max_values:
        return
    num_containers = 0
    for num_values, mark in enumerate(_marks(raw), 1):
        num_containers += mark != b","
        if num_containers > bounds.max_containers:
            raise BodyTooLarge(f"the body has more than {bounds.max_containers} objects and lists, which is the limit")
        if num_values > bounds.max_values:
            raise BodyTooLarge(f"the body has more than {bounds.max_values} values, which is the limit")


def _marks(raw: bytes) -> Iterator[bytes]:
    """Yield each bracket that opens and each comma outside of strings."""
    position = 0
    while found := MARK.search(raw, position):
        position = found.end()
        if found[0] != b'"':
            yield found[0]
            continue
        while position < len(raw):
            end = min(position + PIECE_BYTES, len(raw))
            match = STRING.match(raw, position, end)
            assert match is not None, "the pattern also matches nothing"
            if match.end() < len(raw) and raw[match.end()] == ord('"'):
                position = match.end() + 1
                break
            # The piece ended, perhaps between a backslash and what it escapes.
            position = match.end() if match.end() > position else len(raw)


def _check_depth(root: dict[str, Any], max_depth: int) -> None:
    waiting: list[tuple[Any, int, _Path]] = [(root, 1, None)]
    while waiting:
        container, depth, path = waiting.pop()
        if depth > max_depth:
            field = _field_of(path)
            raise InvalidRequest(f"{field}: nests more than {max_depth} deep, which is the limit", field=field)
        inside = container.items() if isinstance(container, dict) else enumerate(container)
        waiting += [
            (value, depth + 1, (path, str(name)[:STEP_CHARS]))
            for name, value in inside
            if isinstance(value, dict | list)
        ]


def _field_of(path: _Path) -> str:
    """Return the first steps of a path, which name the field that the client knows."""
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(step)
    return ".".join(steps[::-1][:FIELD_STEPS])
