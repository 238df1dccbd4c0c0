"""Items of a response while they are written: the events with which each kind begins, grows and ends."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal

from gateway.dialects.logprobs import content_logprobs
from gateway.dialects.opaque_reasoning import seal
from gateway.dialects.responses.answer_types import (
    CustomCallItem,
    FunctionCallItem,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
)
from gateway.dialects.responses.tools import text_of_arguments
from gateway.request.answer_model import TokenLogprob

StreamEvent = tuple[str, Mapping[str, Any]]
"""Name and fields of one event of the stream."""
Ended = Literal["completed", "incomplete"]
Ending = Generator[StreamEvent, None, OutputItem]


class OpenItem(ABC):
    """One item. `index` is its place in the output."""

    prefix: str  # of its id

    def __init__(self, index: int) -> None:
        self._id = f"{self.prefix}_{secrets.token_hex(12)}"
        self._index = index
        self._pieces: list[str] = []

    def begin(self) -> Iterator[StreamEvent]:
        """Return the events at the beginning of an item."""
        yield "response.output_item.added", {"output_index": self._index, "item": self._announced()}

    def end(self, status: Ended) -> Ending:
        """Yield the events at the end of an item; return the whole item."""
        item = self._whole(status)
        yield from self._closing()
        yield "response.output_item.done", {"output_index": self._index, "item": item}
        return item

    @abstractmethod
    def _announced(self) -> OutputItem:
        """Return the empty item."""

    @abstractmethod
    def _whole(self, status: Ended) -> OutputItem:
        """Return the whole item."""

    @abstractmethod
    def _closing(self) -> Iterator[StreamEvent]:
        """Return the events before the item is done."""

    @property
    def _text(self) -> str:
        return "".join(self._pieces)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index}

    def _delta(self, name: str, text: str, **fields: Any) -> StreamEvent:
        self._pieces.append(text)
        return name, {**self._place, **fields, "delta": text}


class OpenReasoning(OpenItem):
    """Reasoning as it is."""

    prefix = "rs"

    def __init__(self, index: int, *, seals: bool) -> None:
        super().__init__(index)
        self._seals = seals

    def begin(self) -> Iterator[StreamEvent]:
        """Return the events that announce the item and its only part."""
        yield from super().begin()
        yield "response.content_part.added", {**self._place, "content_index": 0, "part": _reasoning_part("")}

    def add(self, text: str) -> Iterator[StreamEvent]:
        """Add text."""
        yield self._delta("response.reasoning_text.delta", text, content_index=0)

    def _announced(self) -> ReasoningItem:
        return {"id": self._id, "type": "reasoning", "summary": [], "content": []}

    def _whole(self, status: Ended) -> ReasoningItem:
        item: ReasoningItem = {**self._announced(), "content": [{"type": "reasoning_text", "text": self._text}]}
        return self._sealed(item)

    def _closing(self) -> Iterator[StreamEvent]:
        yield "response.reasoning_text.done", {**self._place, "content_index": 0, "text": self._text}
        yield "response.content_part.done", {**self._place, "content_index": 0, "part": _reasoning_part(self._text)}

    def _sealed(self, item: ReasoningItem) -> ReasoningItem:
        if self._seals:
            item["encrypted_content"] = seal(self._text)
        return item


class OpenSummary(OpenReasoning):
    """Reasoning where clients look for its summary. It is not shortened."""

    def begin(self) -> Iterator[StreamEvent]:
        """Return the events that announce the item and the only part of its summary."""
        yield from OpenItem.begin(self)
        yield "response.reasoning_summary_part.added", {**self._summary_place, "part": _summary_part("")}

    def add(self, text: str) -> Iterator[StreamEvent]:
        """Add text."""
        yield self._delta("response.reasoning_summary_text.delta", text, summary_index=0)

    def _whole(self, status: Ended) -> ReasoningItem:
        item: ReasoningItem = {**self._announced(), "summary": [{"type": "summary_text", "text": self._text}]}
        return self._sealed(item)

    def _closing(self) -> Iterator[StreamEvent]:
        yield "response.reasoning_summary_text.done", {**self._summary_place, "text": self._text}
        yield "response.reasoning_summary_part.done", {**self._summary_place, "part": _summary_part(self._text)}

    @property
    def _summary_place(self) -> dict[str, Any]:
        return {**self._place, "summary_index": 0}


class OpenMessage(OpenItem):
    """Visible text, with log-probabilities if they were asked for."""

    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[TokenLogprob] = []

    def begin(self) -> Iterator[StreamEvent]:
        """Return the events that announce the item and its only part."""
        yield from super().begin()
        yield "response.content_part.added", {**self._place, "content_index": 0, "part": self._part()}

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[StreamEvent]:
        """Add text."""
        self._logprobs += logprobs
        if text:
            shown = _without_bytes(logprobs)
            yield self._delta("response.output_text.delta", text, content_index=0, logprobs=shown)

    def _announced(self) -> MessageItem:
        return {"id": self._id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}

    def _whole(self, status: Ended) -> MessageItem:
        return {**self._announced(), "content": [self._part()], "status": status}

    def _closing(self) -> Iterator[StreamEvent]:
        place = {**self._place, "content_index": 0}
        yield "response.output_text.done", {**place, "text": self._text, "logprobs": _without_bytes(self._logprobs)}
        yield "response.content_part.done", {**place, "part": self._part()}

    def _part(self) -> OutputText:
        logprobs = content_logprobs(self._logprobs)
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": logprobs}


class OpenCall(OpenItem):
    """A call of a function."""

    prefix = "fc"

    def __init__(self, index: int, call_id: str, namespace: str | None, name: str | None) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._name = name or ""
        self._namespace = namespace

    def add(self, text: str) -> Iterator[StreamEvent]:
        """Add to the arguments."""
        yield self._delta("response.function_call_arguments.delta", text)

    def _announced(self) -> FunctionCallItem | CustomCallItem:
        return self._call("", "in_progress")

    def _whole(self, status: Ended) -> FunctionCallItem | CustomCallItem:
        return self._call(self._text, status)

    def _closing(self) -> Iterator[StreamEvent]:
        yield "response.function_call_arguments.done", {**self._place, "arguments": self._text}

    def _call(self, arguments: str, status: Literal["in_progress", "completed", "incomplete"]) -> FunctionCallItem:
        item: FunctionCallItem = {
            "id": self._id,
            "type": "function_call",
            "call_id": self._call_id,
            "name": self._name,
            "arguments": arguments,
            "status": status,
        }
        if self._namespace is not None:
            item["namespace"] = self._namespace
        return item


class OpenCustomCall(OpenCall):
    """A call of a tool that takes a text, which is known when its arguments are complete."""

    prefix = "ctc"

    def add(self, text: str) -> Iterator[StreamEvent]:
        """Add to the arguments, which contain the text."""
        self._pieces.append(text)
        yield from ()

    def _announced(self) -> CustomCallItem:
        return self._custom("")

    def _whole(self, status: Ended) -> CustomCallItem:
        return self._custom(text_of_arguments(self._text))

    def _closing(self) -> Iterator[StreamEvent]:
        text = text_of_arguments(self._text)
        yield "response.custom_tool_call_input.delta", {**self._place, "delta": text}
        yield "response.custom_tool_call_input.done", {**self._place, "input": text}

    def _custom(self, text: str) -> CustomCallItem:
        item: CustomCallItem = {
            "id": self._id,
            "type": "custom_tool_call",
            "call_id": self._call_id,
            "name": self._name,
            "input": text,
        }
        if self._namespace is not None:
            item["namespace"] = self._namespace
        return item


def _reasoning_part(text: str) -> Mapping[str, str]:
    return {"type": "reasoning_text", "text": text}


def _summary_part(text: str) -> Mapping[str, str]:
    return {"type": "summary_text", "text": text}


def _without_bytes(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return log-probabilities as the stream's text events carry them."""
    return [
        {
            "token": token["token"],
            "logprob": token["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in token["top_logprobs"]],
        }
        for token in content_logprobs(tokens)
    ]
