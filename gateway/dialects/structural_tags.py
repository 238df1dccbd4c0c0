"""Structural tags as a grammar: free text in which every trigger begins a tag with JSON inside."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from services.runtime.errors import InvalidRequest

Tag = tuple[str, Mapping[str, Any], str]
"""What begins it, the schema of the JSON inside, what ends it."""

COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def lark_of_tags(tags: Sequence[Tag], triggers: Sequence[str], field: str) -> str:
    """Return the grammar in Lark. InvalidRequest if a tag begins with no trigger, or a trigger begins none."""
    for index, (begin, _, _) in enumerate(tags):
        if not begin.startswith(tuple(triggers)):
            raise InvalidRequest(f"{field}.structures.{index}.begin: begins with none of triggers", field=field)
    for index, trigger in enumerate(triggers):
        if not any(begin.startswith(trigger) for begin, _, _ in tags):
            raise InvalidRequest(f"{field}.triggers.{index}: begins none of structures", field=field)
    # The text before a trigger is a lazy lexeme: it ends where the trigger is complete for the first time.
    lines = [
        f"start: ({' | '.join(f'tag_{index}' for index in range(len(tags)))})* rest",
        "rest: TEXT",
        "TEXT: /(?s:.*)/",
        *(f"trigger_{index}[lazy]: TEXT {_literal(trigger)}" for index, trigger in enumerate(triggers)),
    ]
    for index, (begin, schema, end) in enumerate(tags):
        first = next(at for at, trigger in enumerate(triggers) if begin.startswith(trigger))
        parts = [
            _literal(begin[len(triggers[first]) :]),
            f"%json {json.dumps({**schema, 'x-guidance': COMPACT})}",
            _literal(end),
        ]
        lines.append(f"tag_{index}: trigger_{first} {' '.join(part for part in parts if part)}")
    return "\n".join(lines) + "\n"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
