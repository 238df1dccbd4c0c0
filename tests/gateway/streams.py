"""Reads a stream of server-sent events byte by byte, as strictly as the contract is written."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.gateway.dialects.sdk_types import check_chunk


@dataclass
class Streamed:
    """A chat stream put together again.

    chunks    every chunk, in order
    text      choice -> its content
    thoughts  choice -> its reasoning
    calls     choice -> its calls as [id, name, arguments]
    finish    choice -> its finish reason
    usage     what the finish chunks said, and the chunk behind them if there was one
    logprobs  choice -> those of its content, if there were any
    error     the error that ended the stream
    """

    chunks: list[dict[str, Any]] = field(default_factory=list)
    text: dict[int, str] = field(default_factory=dict)
    thoughts: dict[int, str] = field(default_factory=dict)
    calls: dict[int, list[list[str]]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    usage: list[dict[str, Any]] = field(default_factory=list)
    logprobs: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    error: dict[str, Any] | None = None


def events_of(raw: bytes) -> list[str]:
    """The data of every event; comments are skipped. Fails on anything else."""
    assert raw.endswith(b"\n\n")
    found: list[str] = []
    for event in raw.decode().removesuffix("\n\n").split("\n\n"):
        if event == ": keep-alive":
            continue
        assert event.startswith("data: ")
        assert "\n" not in event
        found.append(event.removeprefix("data: "))
    return found


def read_stream(raw: bytes) -> Streamed:
    """Read the whole stream and check every rule of its form on the way."""
    *events, done = events_of(raw)
    assert done == "[DONE]"
    streamed = Streamed()
    for event in events:
        chunk = json.loads(event)
        assert streamed.error is None, "nothing follows an error"
        if "error" in chunk:
            streamed.error = chunk["error"]
            continue
        check_chunk(chunk)
        streamed.chunks.append(chunk)
        for choice in chunk["choices"]:
            _take(streamed, choice)
        if not chunk["choices"]:
            streamed.usage.append(chunk["usage"])
    heads = {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in streamed.chunks}
    assert len(heads) <= 1
    return streamed


def _take(streamed: Streamed, choice: dict[str, Any]) -> None:
    index, delta = choice["index"], _without_null_reasoning(choice["delta"])
    assert index not in streamed.finish, "nothing follows a finish"
    if choice["logprobs"] is not None:
        assert "content" in delta
        streamed.logprobs.setdefault(index, []).extend(choice["logprobs"]["content"])
    if index not in streamed.text:
        assert delta == {"role": "assistant", "content": ""}
        streamed.text[index], streamed.thoughts[index], streamed.calls[index] = "", "", []
        return
    assert len(delta) == 1 or choice["finish_reason"]
    streamed.text[index] += delta.get("content", "")
    if "reasoning_content" in delta:
        assert delta["reasoning_content"]
        assert not streamed.text[index], "reasoning comes before content"
        streamed.thoughts[index] += delta["reasoning_content"]
    if "tool_calls" in delta:
        _take_call(streamed.calls[index], delta["tool_calls"])
    if choice["finish_reason"]:
        assert delta == {}
        streamed.finish[index] = choice["finish_reason"]
        streamed.usage.append(choice["usage"])


def _without_null_reasoning(delta: dict[str, Any]) -> dict[str, Any]:
    """Where reasoning is shown, its field is null in every delta that has none."""
    return {name: value for name, value in delta.items() if not (name.startswith("reasoning") and value is None)}


def _take_call(calls: list[list[str]], delta: list[dict[str, Any]]) -> None:
    (call,) = delta
    if "id" in call:
        assert call["index"] == len(calls)
        assert call["type"] == "function"
        assert call["function"]["arguments"] == ""
        calls.append([call["id"], call["function"]["name"], ""])
    else:
        assert call["index"] == len(calls) - 1
        assert call.keys() == {"index", "function"}
        assert call["function"].keys() == {"arguments"}
        calls[-1][2] += call["function"]["arguments"]


async def stream_chat(http: httpx.AsyncClient, **fields: Any) -> Streamed:
    """One streamed request, read to its end."""
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], "stream": True, **fields}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    return read_stream(response.content)
