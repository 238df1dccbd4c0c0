"""What an answer must look like, compiled: the form of its content, the tools it may call, and the markers between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np

from services.attention.constraint.grammar import Grammar, Grammars, Mask
from services.checkpoint.answer_form import canonical_id
from services.checkpoint.markers import STOPS, Marker
from services.checkpoint.vocabulary import TokenTable


class Use(Enum):
    """Whether tools are called."""

    NEVER = "never"
    AUTO = "the model decides"
    REQUIRED = "one section after the reasoning, and nothing else"


class MarkerIds:
    """Ids of the special tokens that structure an answer."""

    def __init__(self, table: TokenTable) -> None:
        self.ids: Mapping[Marker, int] = table.marker_ids
        self.markers: Mapping[int, Marker] = {token_id: marker for marker, token_id in self.ids.items()}
        self.end = self.ids[Marker.END]
        self.ends = frozenset(self.ids[marker] for marker in STOPS)  # all that end a turn


@dataclass(frozen=True)
class CallableTool:
    """A function that may be called, and the form of its arguments."""

    name: str
    arguments: Grammar


@dataclass(frozen=True)
class AnswerPlan:
    """One request's constraint. Immutable; every generation of the request has its own state.

    left_out  keywords of its schemas that are not enforced, each with the reason
    """

    grammars: Grammars
    markers: MarkerIds
    starts_in_reasoning: bool = False
    content: Grammar | None = None  # None: free text
    tools: Sequence[CallableTool] = ()
    use: Use = Use.NEVER
    max_calls: int = 0  # 0: no limit
    first_index: int = 0
    left_out: Sequence[str] = field(default=(), compare=False)

    def header(self, tool: CallableTool, num_calls: int) -> bytes:
        """The id of the next call after `num_calls`, if it is one of this tool."""
        return canonical_id(tool.name, self.first_index + num_calls).encode()

    def call(self, num_calls: int) -> list[int]:
        """The shortest next call, markers included."""
        ids = self.markers.ids
        calls = [
            [*self.grammars.tokenize(self.header(tool, num_calls)), ids[Marker.CALL_ARGUMENTS], *tool.arguments.ending]
            for tool in self.tools
        ]
        return [ids[Marker.CALL_BEGIN], *min(calls, key=len), ids[Marker.CALL_END]]

    def section(self) -> list[int]:
        """The shortest section, with the end of the turn."""
        ids = self.markers.ids
        return [ids[Marker.SECTION_BEGIN], *self.call(0), ids[Marker.SECTION_END], self.markers.end]

    def more_calls(self, num_calls: int) -> bool:
        """Whether another call may follow so many."""
        return bool(self.tools) and self.use is not Use.NEVER and (not self.max_calls or num_calls < self.max_calls)

    def is_ordinary(self, token_id: int) -> bool:
        return token_id < len(self.grammars.table.ordinary)

    @cached_property
    def weight(self) -> int:
        """One token never makes the shortest ending longer by more tokens than this."""
        grammars = [tool.arguments for tool in self.tools] + ([self.content] if self.content else [])
        longest_name = max((len(tool.name) for tool in self.tools), default=0)
        return sum(grammar.weight + len(grammar.ending) for grammar in grammars) + longest_name + 64

    def ordinary(self, *token_ids: int) -> Mask:
        """All ordinary tokens, and these special ones."""
        mask = self.only(*token_ids)
        mask[: len(self.grammars.table.ordinary)] = True
        return mask

    def only(self, *token_ids: int) -> Mask:
        """Nothing but these tokens."""
        mask = np.zeros(self.grammars.table.size, dtype=np.bool_)
        mask[list(token_ids)] = True
        return mask
