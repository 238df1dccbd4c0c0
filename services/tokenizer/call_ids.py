"""Ids of tool calls in a conversation, in the only form that the model was trained on (TEMPLATE.md).

The id is the one place where the prompt names the function of a call. On foreign ids the model imitates them, leaks
markers or ends its turn with nothing.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.checkpoint.answer_form import canonical_id
from services.tokenizer.messages import Call, Message

_CANONICAL = re.compile(r"functions\.(?P<name>.+):(?P<number>[0-9]+)", re.DOTALL)


def split_canonical(call_id: str) -> tuple[str, str] | None:
    """Return function name and digits of an id `functions.NAME:N`, or None for any other id."""
    match = _CANONICAL.fullmatch(call_id)
    return (match["name"], match["number"]) if match else None


def canonical_ids(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with each call id as `functions.NAME:N`; tool messages follow their calls.

    Canonical ids stay byte for byte. Any other gets the number of calls before it, or the next number that no call
    before it has. Nothing depends on later messages, so an earlier prompt of a conversation stays a prefix.
    """
    conversation = _Conversation()
    return [conversation.rename(message) for message in messages]


@dataclass
class _Asked:
    """A call that a later tool message may answer."""

    id: str
    answered: bool = False


class _Waiting:
    """Calls without an answer: the latest turn first, and inside a turn in order."""

    def __init__(self) -> None:
        self._turns: list[tuple[int, deque[_Asked]]] = []

    def add(self, call: _Asked, turn: int) -> None:
        if not self._turns or self._turns[-1][0] != turn:
            self._turns.append((turn, deque()))
        self._turns[-1][1].append(call)

    def take(self) -> _Asked | None:
        while self._turns:
            calls = self._turns[-1][1]
            while calls:
                call = calls.popleft()
                if not call.answered:
                    call.answered = True
                    return call
            self._turns.pop()
        return None


class _Conversation:
    """The calls and ids of the messages so far."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._numbers: set[str] = set()
        self._next_number: dict[int, int] = {}
        self._waiting = _Waiting()
        self._waiting_by_client_id: dict[str, _Waiting] = {}
        self._ids_by_client_id: dict[str, str] = {}

    def rename(self, message: Message) -> Message:
        if message.role == "tool":
            return replace(message, tool_call_id=self._answered(message.tool_call_id))
        # A turn is known by the number of calls before it.
        turn = self._num_calls
        return replace(message, calls=tuple(self._call(call, turn) for call in message.calls))

    def _call(self, call: Call, turn: int) -> Call:
        renamed = replace(call, id=self._canonical(call))
        asked = _Asked(renamed.id)
        self._waiting.add(asked, turn)
        self._waiting_by_client_id.setdefault(call.id, _Waiting()).add(asked, turn)
        self._ids_by_client_id[call.id] = renamed.id
        self._num_calls += 1
        return renamed

    def _canonical(self, call: Call) -> str:
        canonical = split_canonical(call.id)
        number = canonical[1] if canonical and canonical[0] == call.name else str(self._free_from(self._num_calls))
        self._numbers.add(number)
        return canonical_id(call.name, number)

    def _free_from(self, number: int) -> int:
        """Return the first number from this one on that no call has; remember the run that was passed."""
        passed = []
        while str(number) in self._numbers:
            passed.append(number)
            number = self._next_number.get(number, number + 1)
        self._next_number.update(dict.fromkeys(passed, number))
        return number

    def _answered(self, client_id: str) -> str:
        """Return the id that a tool message means: by id, else by order. An answer to nothing keeps its own."""
        if client_id not in self._ids_by_client_id:
            call = self._waiting.take()
            return call.id if call else client_id
        # Clients that number their calls from zero in every turn repeat ids: the latest unanswered one is meant.
        call = self._waiting_by_client_id[client_id].take()
        return call.id if call else self._ids_by_client_id[client_id]
