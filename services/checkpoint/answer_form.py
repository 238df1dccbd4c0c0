"""The form of an answer: the places in it, and how markers lead from one to the next.

The parser reads an answer by these tables, and a constraint lets no other answer come about. A marker leads somewhere
only by its special token; the same characters, generated as ordinary tokens, are text.
"""

from collections.abc import Mapping
from enum import Enum

from services.checkpoint.markers import Marker


class Place(Enum):
    """Where in an answer a token comes."""

    REASONING = "reasoning"
    CONTENT = "content"
    SECTION = "between the calls of a tool section"
    CALL_ID = "the id of a call"
    ARGUMENTS = "the arguments of a call"
    OVER = "nothing counts but the end of the turn"
    RAW = "no chat: all is content, and markers lead nowhere"


Steps = Mapping[tuple[Place, Marker], Place]

# What the model was trained to write, and all that a constrained answer may do.
TRAINED: Steps = {
    (Place.REASONING, Marker.THINK_END): Place.CONTENT,
    (Place.REASONING, Marker.SECTION_BEGIN): Place.SECTION,
    (Place.CONTENT, Marker.SECTION_BEGIN): Place.SECTION,
    (Place.SECTION, Marker.CALL_BEGIN): Place.CALL_ID,
    (Place.CALL_ID, Marker.CALL_ARGUMENTS): Place.ARGUMENTS,
    (Place.ARGUMENTS, Marker.CALL_END): Place.SECTION,
    (Place.SECTION, Marker.SECTION_END): Place.CONTENT,
}

# What it writes by mistake where nothing holds it, read as what it most likely meant.
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

# Inside a call these markers lead nowhere: they are characters of its id or of its arguments.
TEXT_IN_CALLS: Mapping[Place, frozenset[Marker]] = {
    Place.CALL_ID: frozenset({Marker.THINK_BEGIN, Marker.THINK_END}),
    Place.ARGUMENTS: frozenset(
        {Marker.THINK_BEGIN, Marker.THINK_END, Marker.SECTION_BEGIN, Marker.CALL_ARGUMENTS},
    ),
}


def canonical_id(name: str, number: int | str) -> str:
    """The id of a call as the model writes it; `number` counts the calls of the conversation."""
    return f"functions.{name}:{number}"
