"""Read a stream of the Responses dialect byte by byte, as strictly as a client may."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.gateway.dialects.sdk_types import checked

EVENT = TypeAdapter(ResponseStreamEvent)
# fmt: off
DEMANDED = {
    "id", "object", "created_at", "completed_at", "status", "error", "incomplete_details", "output", "usage",
    "model", "instructions", "previous_response_id", "truncation", "text", "presence_penalty",
    "frequency_penalty", "top_logprobs", "reasoning", "max_output_tokens", "max_tool_calls", "store",
    "background", "service_tier", "safety_identifier", "prompt_cache_key", "metadata", "parallel_tool_calls",
    "temperature", "tool_choice", "tools", "top_p",
}
# fmt: on
LAST = ("response.completed", "response.incomplete", "response.failed")
FIELDS = {
    "response.output_text": "text",
    "response.reasoning_text": "text",
    "response.function_call_arguments": "arguments",
    "response.reasoning_summary_text": "text",
    "response.custom_tool_call_input": "input",
}


@dataclass
class StreamedResponse:
    """A stream put together again."""

    response: dict[str, Any] = field(default_factory=dict)  # of the last event
    items: list[dict[str, Any]] = field(default_factory=list)  # as they were done
    deltas: dict[int, str] = field(default_factory=dict)  # by output index
    names: list[str] = field(default_factory=list)
    num_comments: int = 0


def check_response(body: Mapping[str, Any]) -> Response:
    """The body as the SDK's type; fails on a missing, mistyped or unknown field."""
    assert not DEMANDED - body.keys()
    return checked(Response.model_validate(body, strict=True))


def read_response_stream(raw: bytes) -> StreamedResponse:
    """The whole stream; every rule is checked on the way."""
    assert raw.endswith(b"\n\n")
    streamed = StreamedResponse()
    for piece in raw.decode().removesuffix("\n\n").split("\n\n"):
        if piece == ": keep-alive":
            streamed.num_comments += 1
            continue
        name_line, data_line = piece.split("\n")
        event = json.loads(data_line.removeprefix("data: "))
        assert event["type"] == name_line.removeprefix("event: ")
        assert event["sequence_number"] == len(streamed.names)
        checked(EVENT.validate_python(event, strict=True))
        _take(streamed, event)
        streamed.names.append(event["type"])
    assert streamed.names[:2] == ["response.created", "response.in_progress"]
    assert streamed.names[-1] in LAST
    assert sum(name in LAST for name in streamed.names) == 1
    return streamed


def _take(streamed: StreamedResponse, event: Mapping[str, Any]) -> None:
    name, before = event["type"], streamed.names[-1] if streamed.names else ""
    if "response" in event:
        check_response(event["response"])
        assert streamed.response.get("id") in (None, event["response"]["id"])
        streamed.response = event["response"]
    elif name == "response.output_item.added":
        assert event["output_index"] == len(streamed.items) == len(streamed.deltas)
        streamed.deltas[event["output_index"]] = ""
    elif name == "response.output_item.done":
        assert event["output_index"] == len(streamed.items)
        streamed.items.append(event["item"])
    elif name.endswith(".delta"):
        assert event["delta"]
        assert event["output_index"] == len(streamed.items)
        streamed.deltas[event["output_index"]] += event["delta"]
    elif name in ("response.content_part.added", "response.reasoning_summary_part.added"):
        assert before == "response.output_item.added"
    elif name in ("response.content_part.done", "response.reasoning_summary_part.done"):
        assert event["part"]["text"] == streamed.deltas[event["output_index"]]
    else:
        assert event[FIELDS[name.removesuffix(".done")]] == streamed.deltas[event["output_index"]]


async def stream_response(http: httpx.AsyncClient, body: Mapping[str, Any]) -> StreamedResponse:
    """One streamed request, read to its end."""
    response = await http.post("/v1/responses", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return read_response_stream(response.content)
