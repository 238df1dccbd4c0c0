"""Feeding a parser in tests, and reading what it hands out."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from protos.tokenizer_pb2 import Delta
from services.tokenizer.parser import Dropped, Parser
from services.tokenizer.parser_options import ParserOptions
from services.tokenizer.vocabulary import Vocabulary


@dataclass
class Call:
    id: str
    name: str
    arguments: str = ""
    complete: bool | None = None


@dataclass
class Answer:
    """Deltas put together, as a client does it; `order` is what came one after the other, neighbours joined."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    order: list[tuple] = field(default_factory=list)

    def add(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            kind = delta.WhichOneof("piece")
            piece = getattr(delta, kind)
            match kind:
                case "reasoning" | "content":
                    setattr(self, kind, getattr(self, kind) + piece)
                    self._order(kind, -1, piece)
                case "tool_call_start":
                    assert piece.index == len(self.calls), "calls are numbered without gaps"
                    self.calls.append(Call(piece.id, piece.name))
                    self.order.append((kind, piece.index, piece.id, piece.name))
                case "tool_call_arguments":
                    assert piece.index == len(self.calls) - 1
                    assert self.calls[-1].complete is None
                    self.calls[-1].arguments += piece.text
                    self._order(kind, piece.index, piece.text)
                case "tool_call_end":
                    assert piece.index == len(self.calls) - 1
                    self.calls[-1].complete = piece.complete
                    self.order.append((kind, piece.index, piece.complete))

    def _order(self, kind: str, index: int, text: str) -> None:
        assert text, "no empty pieces"
        if self.order and self.order[-1][:2] == (kind, index):
            text = self.order.pop()[2] + text
        self.order.append((kind, index, text))


class Notes(Counter):
    """Counts what a parser repairs and drops."""

    def call_dropped(self, reason: Dropped) -> None:
        self[reason] += 1

    def name_repaired(self) -> None:
        self["repaired"] += 1

    def arguments_invalid(self) -> None:
        self["invalid"] += 1

    def text_dropped(self) -> None:
        self["text"] += 1


@dataclass
class Parsed:
    answer: Answer
    parser: Parser
    notes: Notes


def parse(
    vocabulary: Vocabulary,
    token_ids: Sequence[int],
    options: ParserOptions,
    *,
    cuts: Iterable[int] = (),
    truncated: bool = False,
    end: bool = True,
) -> Parsed:
    """The answer in these tokens, fed in requests that end at `cuts`."""
    parsed = Parsed(Answer(), None, Notes())
    parsed.parser = Parser(vocabulary, options, parsed.notes)
    start = 0
    for cut in (*cuts, len(token_ids)):
        parsed.parser.feed(token_ids[start:cut])
        parsed.answer.add(parsed.parser.take_deltas())
        start = cut
    if end:
        parsed.parser.end(truncated=truncated)
        parsed.answer.add(parsed.parser.take_deltas())
    return parsed
