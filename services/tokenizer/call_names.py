"""The declared tool that a call of the model means, and the id that the call gets (TEMPLATE.md).

The model writes `functions.NAME:N`; every other form below was seen in production.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.checkpoint.answer_form import canonical_id
from services.tokenizer.call_ids import split_canonical
from services.tokenizer.tools import DeclaredTool

# No id is longer; a longer text is not tried in all forms.
MAX_ID_CHARS = 512

# Counters, and ids of other servers that the model imitates, name no function.
_NAMELESS = re.compile(
    r"\d*|call[_-]?(?=[a-f-]*\d)[0-9a-f-]+|(?:call|toolu|chatcmpl-tool)[_-](?=[a-z]*\d)[0-9a-z]{8,}"
    r"|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Named:
    """A call of the tool `name`; `repaired` if the model wrote it in another form than the trained one."""

    name: str
    repaired: bool


@dataclass(frozen=True)
class Nameless:
    """A call whose id names no function: the tool is inferred from its arguments."""


@dataclass(frozen=True)
class Unknown:
    """A call of something that is not declared."""


class CallNames:
    """Names and ids of the calls in one message. Mutable: it remembers the ids that it gave."""

    def __init__(self, tools: Sequence[DeclaredTool], num_history_calls: int, history_call_ids: Sequence[str]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._num_history_calls = num_history_calls
        self._given = set(history_call_ids)
        alike = Counter(_fold(name) for name in self._tools)
        self._folded = {_fold(name): name for name in self._tools if alike[_fold(name)] == 1}

    def resolve(self, id_text: str) -> Named | Nameless | Unknown:
        """Resolve the text between call begin and argument begin."""
        canonical = split_canonical(id_text)
        if canonical and canonical[0] in self._tools:
            return Named(canonical[0], repaired=False)
        if len(id_text) > MAX_ID_CHARS:
            return Unknown()
        candidates = list(_candidates(id_text))
        for candidate in candidates:
            if candidate in self._tools:
                return Named(candidate, repaired=True)
        for candidate in candidates:
            if _fold(candidate) in self._folded:
                return Named(self._folded[_fold(candidate)], repaired=True)
        if not any(_NAMELESS.fullmatch(candidate) for candidate in candidates):
            return Unknown()
        return Named(next(iter(self._tools)), repaired=True) if len(self._tools) == 1 else Nameless()

    def infer(self, keys: Sequence[str]) -> str | None:
        """Return the tool whose properties fit the keys best; None if no tool fits better than all others."""
        fits = sorted(((self._fit(tool, set(keys)), name) for name, tool in self._tools.items()), reverse=True)
        if not fits or fits[0][0][0] == 0 or (len(fits) > 1 and fits[0][0] == fits[1][0]):
            return None
        return fits[0][1]

    def give_id(self, id_text: str, name: str, position: int) -> str:
        """Return the id of the call at `position` of this message: the model's own if it is canonical and not taken."""
        call_id, number = id_text, self._num_history_calls + position
        canonical = split_canonical(id_text)
        while not canonical or canonical[0] != name or call_id in self._given:
            call_id = canonical_id(name, number)
            canonical = (name, str(number))
            number += 1
        self._given.add(call_id)
        return call_id

    @staticmethod
    def _fit(tool: DeclaredTool, keys: set[str]) -> tuple[int, int, int]:
        known = keys & tool.properties
        return len(known), -len(keys - known), -len(tool.properties - known)


def _candidates(id_text: str) -> Iterator[str]:
    """Return the names that the text may stand for, the most likely first."""
    in_parentheses = re.fullmatch(r"functions\(([^()]+)\)(.*)", id_text, re.DOTALL)
    text = in_parentheses[1] + in_parentheses[2] if in_parentheses else id_text
    text = re.sub(r"(?<=\d)\.0$", "", text, flags=re.ASCII)
    prefix = re.match(r"functions[._]", text)
    bases = [text, text[prefix.end() :]] if prefix else [text]
    for base in bases:
        name, colon, number = base.rpartition(":")
        yield base
        if colon and _is_number(number):
            yield name
    for base in bases:
        without_digits = base.rstrip("0123456789")
        if without_digits != base and without_digits.endswith("_"):
            yield without_digits[:-1]
    for base in bases:
        # The name itself may end in digits: the longest name is tried first.
        for end in range(len(base) - 1, len(base.rstrip("0123456789")) - 1, -1):
            yield base[:end]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _fold(name: str) -> str:
    return name.replace("-", "_")
