"""The states of a supervised process, and the transitions between them."""

from collections.abc import Mapping
from enum import Enum, auto


class ChildState(Enum):
    """State of a process; the values are shown to users."""

    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"
    RESTARTING = "restarting"
    ASLEEP = "asleep"
    STOPPED = "stopped"


class Order(Enum):
    """What a process has been ordered to do."""

    RUN = auto()
    SLEEP = auto()
    STOP = auto()


class Event(Enum):
    START = auto()
    SERVE = auto()
    TERMINATE = auto()
    EXIT = auto()
    SLEEP = auto()
    STOP = auto()


RUNNING = frozenset({ChildState.STARTING, ChildState.READY, ChildState.ENDING})

# An event without an entry for a state is a mistake of the supervisor.
TRANSITIONS: Mapping[tuple[ChildState, Event], ChildState] = {
    (ChildState.STOPPED, Event.START): ChildState.STARTING,
    (ChildState.ASLEEP, Event.START): ChildState.STARTING,
    (ChildState.RESTARTING, Event.START): ChildState.STARTING,
    (ChildState.STARTING, Event.SERVE): ChildState.READY,
    (ChildState.STARTING, Event.TERMINATE): ChildState.ENDING,
    (ChildState.READY, Event.TERMINATE): ChildState.ENDING,
    (ChildState.STARTING, Event.EXIT): ChildState.RESTARTING,
    (ChildState.READY, Event.EXIT): ChildState.RESTARTING,
    (ChildState.ENDING, Event.EXIT): ChildState.ASLEEP,
    (ChildState.STOPPED, Event.SLEEP): ChildState.ASLEEP,
    (ChildState.ASLEEP, Event.SLEEP): ChildState.ASLEEP,
    (ChildState.RESTARTING, Event.SLEEP): ChildState.ASLEEP,
    **{(state, Event.STOP): ChildState.STOPPED for state in ChildState},
}
