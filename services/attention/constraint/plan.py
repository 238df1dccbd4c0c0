"""What an answer must look like, compiled: the form of its content, the tools it may call, and the markers between."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from services.attention.constraint.grammar import Grammar, Grammars, Mask
from services.checkpoint.markers import STOPS, Marker
from services.checkpoint.vocabulary import TokenTable


class Use(Enum):
    """Whether tools are called."""

    NEVER = "never"
    AUTO = "the model decides"
    REQUIRED = "one section after the reasoning, and nothing else"


@dataclass(frozen=True)
class Markers:
    """Ids of the special tokens that structure an answer."""

    think_end: int
    section_begin: int
    section_end: int
    call_begin: int
    arguments: int
    call_end: int
    end: int
    ends: frozenset[int]  # all that end a turn

    @staticmethod
    def of(table: TokenTable) -> "Markers":
        ids = table.marker_ids
        return Markers(
            think_end=ids[Marker.THINK_END],
            section_begin=ids[Marker.SECTION_BEGIN],
            section_end=ids[Marker.SECTION_END],
            call_begin=ids[Marker.CALL_BEGIN],
            arguments=ids[Marker.CALL_ARGUMENTS],
            call_end=ids[Marker.CALL_END],
            end=ids[Marker.END],
            ends=frozenset(ids[marker] for marker in STOPS),
        )


@dataclass(frozen=True)
class Tool:
    """A function that may be called, and the form of its arguments."""

    name: str
    arguments: Grammar


@dataclass(frozen=True)
class Plan:
    """One request's constraint. Immutable; every generation of the request has its own state."""

    grammars: Grammars
    markers: Markers
    starts_in_reasoning: bool = False
    content: Grammar | None = None  # None: free text
    tools: Sequence[Tool] = ()
    use: Use = Use.NEVER
    max_calls: int = 0  # 0: no limit
    first_index: int = 0

    def header(self, tool: Tool, num_calls: int) -> bytes:
        """The id of the next call after `num_calls`, if it is one of this tool."""
        return f"functions.{tool.name}:{self.first_index + num_calls}".encode()

    def call(self, num_calls: int) -> list[int]:
        """The shortest next call, markers included."""
        calls = [
            [*self.grammars.tokenize(self.header(tool, num_calls)), self.markers.arguments, *tool.arguments.ending]
            for tool in self.tools
        ]
        return [self.markers.call_begin, *min(calls, key=len), self.markers.call_end]

    def section(self) -> list[int]:
        """The shortest section, with the end of the turn."""
        return [self.markers.section_begin, *self.call(0), self.markers.section_end, self.markers.end]

    def more_calls(self, num_calls: int) -> bool:
        """Whether another call may follow so many."""
        return bool(self.tools) and self.use is not Use.NEVER and (not self.max_calls or num_calls < self.max_calls)

    @property
    def owes_content(self) -> bool:
        """Whether the content has a form."""
        return self.content is not None

    def is_ordinary(self, token_id: int) -> bool:
        return token_id < len(self.grammars.table.ordinary)

    @property
    def weight(self) -> int:
        """One token never makes the shortest ending longer by more tokens than this."""
        grammars = [tool.arguments for tool in self.tools] + ([self.content] if self.content else [])
        longest_name = max((len(tool.name) for tool in self.tools), default=0)
        return sum(grammar.weight for grammar in grammars) + longest_name + 64

    def ordinary(self, *markers: int) -> Mask:
        """All ordinary tokens, and these special ones."""
        mask = np.zeros(self.grammars.table.size, dtype=np.bool_)
        mask[: len(self.grammars.table.ordinary)] = True
        mask[list(markers)] = True
        return mask

    def only(self, *token_ids: int) -> Mask:
        """Nothing but these tokens."""
        mask = np.zeros(self.grammars.table.size, dtype=np.bool_)
        mask[list(token_ids)] = True
        return mask
