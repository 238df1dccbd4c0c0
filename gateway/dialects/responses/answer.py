"""Answers of the Responses dialect: the resource, or the events of a stream."""

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import orjson

from gateway.dialects.left_out import NO_NOTES, notes_of
from gateway.dialects.responses.answer_types import OutputItem, Repeated, Response, ResponseUsage
from gateway.dialects.responses.open_items import StreamEvent
from gateway.dialects.responses.output import ItemBuilder
from gateway.dialects.responses.request import AskedResponse
from gateway.dialects.responses.schema import CustomTool, FunctionTool, NamespaceTool, OtherTool
from gateway.http.errors import openai_error
from gateway.http.sse import KEEP_ALIVE, named_event
from gateway.request.answer_model import AnswerEvent, Finish, Usage
from services.runtime.errors import MoonshardError

Status = Literal["in_progress", "completed", "incomplete", "failed"]


def usage_of(usage: Usage) -> ResponseUsage:
    """Return the counts; the cached tokens are part of the input tokens."""
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.num_completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
    }


class Resource:
    """One response under way: what its request said, and what has come of it."""

    def __init__(self, asked: AskedResponse) -> None:
        self._repeated = _repeated(asked)
        self._id = f"resp_{secrets.token_hex(16)}"
        self._created_at = int(time.time())

    def unfinished(self) -> Response:
        """Return the response while it runs."""
        return self._fields("in_progress", [])

    def finished(self, finish: Finish, output: list[OutputItem], usage: Usage) -> Response:
        """Return the response at its end."""
        fields = self._fields("incomplete" if finish.reason == "length" else "completed", output)
        fields["usage"] = usage_of(usage)
        if "moonshard" in (notes := notes_of(usage)):
            fields["moonshard"] = notes["moonshard"]
        if finish.reason == "length":
            fields["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            fields["completed_at"] = int(time.time())
        return fields

    def failed(self, error: MoonshardError, output: list[OutputItem]) -> Response:
        """Return the response after an error."""
        message = openai_error(error)["error"]["message"]
        return {**self._fields("failed", output), "error": {"code": "server_error", "message": message}}

    def _fields(self, status: Status, output: list[OutputItem]) -> Response:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": output,
            "usage": None,
            **self._repeated,
            **NO_NOTES,
        }


def _repeated(request: AskedResponse) -> Repeated:
    asked, sampling = request.asked, request.request.sampling
    text, choice, reasoning = asked.text, asked.tool_choice, asked.reasoning
    form = {"type": "text"} if text is None or text.format is None else text.format.model_dump(by_alias=True)
    return {
        "model": asked.model,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [_shown(tool) for tool in asked.tools or () if not isinstance(tool, OtherTool)],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_logprobs": asked.top_logprobs or 0,
        "text": {"format": form},
        "reasoning": {
            "effort": None if reasoning is None else reasoning.effort,
            "summary": None if reasoning is None else reasoning.summary or reasoning.generate_summary,
        },
        "metadata": asked.metadata or {},
        "previous_response_id": None,
        "truncation": "disabled",
        "store": False,
        "background": False,
        "service_tier": "default",
        "safety_identifier": asked.safety_identifier,
        "prompt_cache_key": asked.prompt_cache_key,
    }


def _shown(tool: FunctionTool | CustomTool | NamespaceTool) -> dict[str, Any]:
    """Return a tool as its request declared it, with defaults."""
    match tool:
        case FunctionTool():
            return {**tool.model_dump(include=_declared(tool)), "strict": tool.strict is not False}
        case NamespaceTool():
            return {**tool.model_dump(exclude={"tools"}), "tools": [_shown(inner) for inner in tool.tools]}
        case _:
            return tool.model_dump(include=_declared(tool), exclude_none=True)


def _declared(tool: FunctionTool | CustomTool) -> set[str]:
    return set(type(tool).model_fields)


def whole_response(resource: Resource, items: ItemBuilder, events: Sequence[AnswerEvent], usage: Usage) -> Response:
    """Return the body of an answer that is not streamed."""
    for event in events:
        for _ in items.take(event):
            pass
    finish = events[-1]
    assert isinstance(finish, Finish), "an answer ends with the finish of its only choice"
    return resource.finished(finish, items.output, usage)


class ItemWriter:
    """Turns the events of one answer into those of the stream."""

    def __init__(self, resource: Resource, items: ItemBuilder, usage: Usage) -> None:
        self._resource = resource
        self._items = items
        self._usage = usage
        self._num_written = 0

    def write(self, events: Sequence[AnswerEvent]) -> bytes:
        """Write these events, in order."""
        return self._begin() + b"".join(self._written(self._stream_events(event)) for event in events)

    def keep_alive(self) -> bytes:
        """Write the beginning, or else a comment."""
        return self._begin() or KEEP_ALIVE

    def last(self) -> bytes:
        """Write nothing: the last event was the end."""
        return b""

    def fail(self, error: MoonshardError) -> bytes:
        """Write the response with the error as the last event."""
        failed = {"response": self._resource.failed(error, self._items.output)}
        return self._begin() + self._written([("response.failed", failed)])

    def _begin(self) -> bytes:
        if self._num_written:
            return b""
        fields = {"response": self._resource.unfinished()}
        return self._written([("response.created", fields), ("response.in_progress", fields)])

    def _stream_events(self, event: AnswerEvent) -> Iterable[StreamEvent]:
        yield from self._items.take(event)
        if isinstance(event, Finish):
            response = self._resource.finished(event, self._items.output, self._usage)
            yield f"response.{response['status']}", {"response": response}

    def _written(self, stream_events: Iterable[StreamEvent]) -> bytes:
        pieces: list[bytes] = []
        for name, fields in stream_events:
            event = {"type": name, "sequence_number": self._num_written, **fields}
            pieces.append(named_event(name, orjson.dumps(event)))
            self._num_written += 1
        return b"".join(pieces)
