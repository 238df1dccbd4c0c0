"""The form of an answer: its places, and the markers that lead from one to the next.

The parser reads answers by these tables, and a constraint admits no others. Only the special token of a marker changes
the place; the same characters, generated as ordinary tokens, are text.
"""

from collections.abc import Mapping
from enum import Enum

from services.checkpoint.markers import Marker


class Place(Enum):
    """A place in an answer."""

    REASONING = "reasoning"
    CONTENT = "content"
    SECTION = "between the calls of a tool section"
    CALL_ID = "the id of a call"
    ARGUMENTS = "the arguments of a call"
    OVER = "nothing counts but the end of the turn"
    RAW = "no chat: all is content, and markers lead nowhere"


Steps = Mapping[tuple[Place, Marker], Place]

# Transitions that the model was trained to write; a constrained answer has no others.
TRAINED: Steps = {
    (Place.REASONING, Marker.THINK_END): Place.CONTENT,
    (Place.REASONING, Marker.SECTION_BEGIN): Place.SECTION,
    (Place.CONTENT, Marker.SECTION_BEGIN): Place.SECTION,
    (Place.SECTION, Marker.CALL_BEGIN): Place.CALL_ID,
    (Place.CALL_ID, Marker.CALL_ARGUMENTS): Place.ARGUMENTS,
    (Place.ARGUMENTS, Marker.CALL_END): Place.SECTION,
    (Place.SECTION, Marker.SECTION_END): Place.CONTENT,
}

# Transitions that an unconstrained model makes by mistake, with their most likely meaning.
REPAIRED: Steps = {
    (Place.REASONING, Marker.CALL_BEGIN): Place.CALL_ID,
    (Place.CONTENT, Marker.CALL_BEGIN): Place.CALL_ID,
    (Place.CALL_ID, Marker.CALL_BEGIN): Place.CALL_ID,
    (Place.CALL_ID, Marker.CALL_END): Place.SECTION,
    (Place.CALL_ID, Marker.SECTION_BEGIN): Place.SECTION,
    (Place.CALL_ID, Marker.SECTION_END): Place.CONTENT,
    (Place.ARGUMENTS, Marker.CALL_BEGIN): Place.CALL_ID,
    (Place.ARGUMENTS, Marker.SECTION_END): Place.CONTENT,
}

# Inside a call these markers have no effect: they are characters of its id or of its arguments.
TEXT_IN_CALLS: Mapping[Place, frozenset[Marker]] = {
    Place.CALL_ID: frozenset({Marker.THINK_BEGIN, Marker.THINK_END}),
    Place.ARGUMENTS: frozenset(
        {Marker.THINK_BEGIN, Marker.THINK_END, Marker.SECTION_BEGIN, Marker.CALL_ARGUMENTS},
    ),
}


def canonical_id(name: str, number: int | str) -> str:
    """Return the id of a call in the model's form; `number` counts the calls of the conversation."""
    return f"functions.{name}:{number}"
