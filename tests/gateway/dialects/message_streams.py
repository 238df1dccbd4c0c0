"""Read a stream of the Anthropic dialect byte by byte, as strictly as a client may."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.gateway.dialects.sdk_types import checked

EVENT = TypeAdapter(RawMessageStreamEvent)
DELTAS = {
    "thinking": {"thinking_delta", "signature_delta"},
    "text": {"text_delta"},
    "tool_use": {"input_json_delta"},
}


@dataclass
class StreamedMessage:
    """A stream put together again. The input of a call is its text here."""

    message: dict[str, Any] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    inputs: dict[int, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of all events but pings
    num_pings: int = 0
    num_comments: int = 0
    error: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        return "".join(block["text"] for block in self.blocks if block["type"] == "text")

    @property
    def thoughts(self) -> str:
        return "".join(block["thinking"] for block in self.blocks if block["type"] == "thinking")

    @property
    def calls(self) -> list[tuple[str, Any]]:
        called = [(index, block) for index, block in enumerate(self.blocks) if block["type"] == "tool_use"]
        return [(block["name"], json.loads(self.inputs[index])) for index, block in called]


def read_message_stream(raw: bytes) -> StreamedMessage:
    """The whole stream; every rule is checked on the way."""
    assert raw.endswith(b"\n\n")
    streamed = StreamedMessage()
    open_index: int | None = None
    for piece in raw.decode().removesuffix("\n\n").split("\n\n"):
        if piece == ": keep-alive":
            assert not streamed.names
            streamed.num_comments += 1
            continue
        name_line, data_line = piece.split("\n")
        name = name_line.removeprefix("event: ")
        event = json.loads(data_line.removeprefix("data: "))
        assert event["type"] == name
        assert streamed.error is None, "nothing follows an error"
        if name == "ping":
            assert streamed.names, "a ping comes after the start"
            streamed.num_pings += 1
        elif name == "error":
            assert event.keys() == {"type", "error"}
            streamed.error = event["error"]
        else:
            checked(EVENT.validate_python(event, strict=True))
            open_index = _take(streamed, event, open_index)
            streamed.names.append(name)
    if streamed.error is None:
        assert streamed.names[0] == "message_start"
        assert streamed.names[-2:] == ["message_delta", "message_stop"]
    return streamed


def _take(streamed: StreamedMessage, event: Mapping[str, Any], open_index: int | None) -> int | None:
    match event["type"]:
        case "message_start":
            assert not streamed.names
            streamed.message = event["message"]
            assert streamed.message["content"] == []
            assert streamed.message["stop_reason"] is None
        case "content_block_start":
            assert open_index is None
            assert event["index"] == len(streamed.blocks)
            streamed.blocks.append(dict(event["content_block"]))
            streamed.inputs[event["index"]] = ""
            return event["index"]
        case "content_block_delta":
            assert event["index"] == open_index
            block, delta = streamed.blocks[open_index], event["delta"]
            assert delta["type"] in DELTAS[block["type"]]
            if delta["type"] == "input_json_delta":
                streamed.inputs[open_index] += delta["partial_json"]
            else:
                key = delta["type"].removesuffix("_delta")
                block[key] += delta[key]
        case "content_block_stop":
            assert event["index"] == open_index
            return None
        case "message_delta":
            assert open_index is None
            streamed.message |= event["delta"] | {"usage": event["usage"]}
    return open_index


def check_message(body: Mapping[str, Any]) -> Message:
    """The body as the SDK's type; fails on a missing, mistyped or unknown field."""
    return checked(Message.model_validate(body, strict=True))


def anthropic_client(url: str) -> anthropic.AsyncAnthropic:
    """The official client, in front of a gateway."""
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=20)


async def stream_message(http: httpx.AsyncClient, body: Mapping[str, Any]) -> StreamedMessage:
    """One streamed request, read to its end."""
    response = await http.post("/v1/messages", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    return read_message_stream(response.content)
