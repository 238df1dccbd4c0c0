"""Output items: what the events of an answer add up to, and the stream's events on the way there."""

from collections.abc import Iterator, Mapping, Sequence

from gateway.dialects.responses.answer_types import OutputItem
from gateway.dialects.responses.open_items import (
    OpenCall,
    OpenCustomCall,
    OpenItem,
    OpenMessage,
    OpenReasoning,
    OpenSummary,
    StreamEvent,
)
from gateway.dialects.responses.tools import DeclaredTool
from gateway.request.answer_model import AnswerEvent, CallArguments, CallEnd, CallStart, Content, Finish, Reasoning


class ItemBuilder:
    """Owns the items of one response. One item is open at a time.

    output  finished items; a call that the budget cut is not among them
    """

    def __init__(
        self, tools: Mapping[str, DeclaredTool], *, seals_reasoning: bool = False, summarises: bool = False
    ) -> None:
        self.output: list[OutputItem] = []
        self._tools = tools
        self._seals_reasoning = seals_reasoning
        self._summarises = summarises
        self._open: OpenItem | None = None
        self._num_items = 0

    def take(self, event: AnswerEvent) -> Iterator[StreamEvent]:
        """Yield the events of the stream that an event causes."""
        match event:
            case Reasoning():
                yield from self._reason(event)
            case Content():
                yield from self._write(event)
            case CallStart():
                yield from self._leave("completed")
                kind = OpenCustomCall if self._is_custom(event.name) else OpenCall
                yield from self._enter(kind(self._num_items, event.id, *self._names(event.name)))
            case CallArguments():
                assert isinstance(self._open, OpenCall)
                yield from self._open.add(event.text)
            case CallEnd():
                yield from self._leave("completed" if event.complete else "incomplete")
            case Finish():
                yield from self._leave("incomplete" if event.reason == "length" else "completed")

    def _reason(self, event: Reasoning) -> Iterator[StreamEvent]:
        if not isinstance(self._open, OpenReasoning):
            yield from self._leave("completed")
            kind = OpenSummary if self._summarises else OpenReasoning
            yield from self._enter(kind(self._num_items, seals=self._seals_reasoning))
        assert isinstance(self._open, OpenReasoning)
        yield from self._open.add(event.text)

    def _write(self, event: Content) -> Iterator[StreamEvent]:
        if event.text and not isinstance(self._open, OpenMessage):
            yield from self._leave("completed")
            yield from self._enter(OpenMessage(self._num_items))
        # Tokens without a text are at the end and show none.
        if isinstance(self._open, OpenMessage):
            yield from self._open.add(event.text, event.logprobs)

    def _is_custom(self, name: str) -> bool:
        tool = self._tools.get(name)
        return tool is not None and tool.kind == "custom"

    def _names(self, name: str) -> Sequence[str | None]:
        """Return namespace and name of a tool, as the client declared it."""
        tool = self._tools.get(name)
        return (None, name) if tool is None else (tool.namespace, tool.name)

    def _enter(self, item: OpenItem) -> Iterator[StreamEvent]:
        self._open = item
        self._num_items += 1
        yield from item.begin()

    def _leave(self, status: str) -> Iterator[StreamEvent]:
        if self._open is None:
            return
        done = yield from self._open.end("incomplete" if status == "incomplete" else "completed")
        if status == "completed" or not isinstance(self._open, OpenCall):
            self.output.append(done)
        self._open = None
