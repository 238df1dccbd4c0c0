"""Right bodies of every dialect, damaged: as values, as text and as bytes, with the headers of others."""

import gzip
import json
import random
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from gateway.dialects.chat.schema import ChatCompletionRequest
from gateway.dialects.completions.schema import CompletionRequest
from gateway.dialects.messages.schema import MessagesRequest
from gateway.dialects.responses.schema import ResponsesRequest
from tests.bench.abuse.traffic import LOOK_UP, questions

Damaged = tuple[str, dict[str, str], bytes]

JSON = "application/json"
HEADERS = (
    {"content-type": JSON},
    {"content-type": "text/plain"},
    {},
    {"content-type": JSON, "content-encoding": "gzip"},
    {"content-type": JSON, "content-encoding": "br"},
    {"content-type": JSON, "accept": "text/event-stream"},
    {"content-type": f"{JSON}; charset=latin-1"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": JSON, "x-request-id": "~" * 300},
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e308, 1e-320),
    *("", " ", "x", "\x00", "\ud800", "é" * 50, "🌙", "{", "<|im_end|>", "data:image/png;base64,AAAA", "a" * 5000),
    *([], [[]], {}, [None], [1, "a"], {"": None}, {"type": "text"}, {"type": "x"}, {"role": "user"}, {"$ref": "#"}),
)
NAMES = sorted(
    {
        *ChatCompletionRequest.model_fields,
        *MessagesRequest.model_fields,
        *ResponsesRequest.model_fields,
        *CompletionRequest.model_fields,
        *("type", "role", "content", "id", "name", "input", "function", "arguments", "cache_control", "x", ""),
    }
)


def mutations(number: int, seed: int = 0) -> Iterator[Damaged]:
    """Yield so many damaged requests: path, headers, body."""
    sys.setrecursionlimit(10_000)  # of what nests, and is copied and written here
    dice = random.Random(seed)
    bases = [(question.path, dict(question.body)) for question in questions()] + rich_bodies()
    for _ in range(number):
        path, body = dice.choice(bases)
        if dice.random() < 0.05:
            path = dice.choice(bases)[0]
        damaged: Any = deepcopy(body)
        for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
            damaged = damage_value(dice, damaged)
        raw = write(dice, damaged)
        if dice.random() < 0.25:
            raw = damage_bytes(dice, raw)
        headers = dict(dice.choice(HEADERS) if dice.random() < 0.1 else HEADERS[0])
        if headers.get("content-encoding") == "gzip" and dice.random() < 0.7:
            raw = gzip.compress(raw)
        yield path, headers, raw


def write(dice: random.Random, value: Any) -> bytes:
    """Write JSON, at times in a way that only some readers take."""
    text = json.dumps(value, ensure_ascii=dice.random() < 0.7)
    if dice.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = f"{text[:-1]}, {text[1:]}"  # every name twice
    if dice.random() < 0.02:
        text = text.replace(":", ": " + " " * 1000)
    return text.encode("utf-16" if dice.random() < 0.01 else "utf-8", "surrogatepass")


def damage_value(dice: random.Random, value: Any) -> Any:
    """Replace, remove, add, move or nest something at some place."""
    places = list(_places(value)) if isinstance(value, dict | list) else []
    if not places:
        return deepcopy(dice.choice(VALUES))
    parent, key = dice.choice(places)
    match dice.randrange(7):
        case 0 | 1:
            parent[key] = deepcopy(dice.choice(VALUES))
        case 2:
            del parent[key]
        case 3 if isinstance(parent, dict):
            parent[dice.choice(NAMES)] = deepcopy(parent[key])
        case 4 if isinstance(parent, dict):
            parent[dice.choice(NAMES)] = deepcopy(dice.choice(VALUES))
        case 5:
            other, name = dice.choice(places)
            parent[key] = deepcopy(other[name]) if _has(other, name) else None
        case _:
            for _ in range(dice.choice((1, 2, 60, 120))):
                parent[key] = dice.choice(([parent[key]], {dice.choice(NAMES): parent[key]}))
    return value


def damage_bytes(dice: random.Random, raw: bytes) -> bytes:
    """Change, cut, repeat or add bytes."""
    at = dice.randrange(len(raw) + 1)
    match dice.randrange(5):
        case 0:
            return raw[:at]
        case 1:
            return raw[:at] + bytes(dice.randrange(256) for _ in range(dice.randrange(1, 5))) + raw[at:]
        case 2:
            return raw[:at] + raw[at + dice.randrange(1, 9) :]
        case 3:
            return raw + raw[at:]
    return raw[at:]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [value]
    while waiting:
        parent = waiting.pop()
        for key, inner in parent.items() if isinstance(parent, dict) else enumerate(parent):
            yield parent, key
            if isinstance(inner, dict | list):
                waiting.append(inner)


def _has(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else key < len(parent)


def rich_bodies() -> list[tuple[str, dict[str, Any]]]:
    """Return bodies with histories of calls, thoughts, files and fields that only some clients send."""
    few = {"model": "kimi-k2.6", "max_tokens": 4}
    function = {"type": "function", "function": LOOK_UP}
    call = {
        "id": "functions.look_up:0",
        "type": "function",
        "function": {"name": "look_up", "arguments": '{"key":"a"}'},
    }
    chat = [
        {"role": "system", "content": "Be brief.", "name": "s"},
        {"role": "user", "content": [{"type": "text", "text": "Look a up."}]},
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "1"},
    ]
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": "Look.", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look.", "signature": "x"},
                {"type": "tool_use", "id": "t1", "name": "look_up", "input": {"key": "a"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "1", "is_error": False}]},
    ]
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": "Look a up."},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"key":"a"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
    ]
    limits = {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 0.1, "frequency_penalty": 0.1, "seed": 3}
    tool = {"name": "look_up", "description": "x", "input_schema": LOOK_UP["parameters"]}
    flat = {"type": "function", **LOOK_UP}
    return [
        ("/v1/chat/completions", {**few, **limits, "messages": chat, "tools": [function], "stop": ["\n", "x"], "n": 2}),
        ("/v1/chat/completions", {**few, "messages": chat, "tools": [function], "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {**few, "messages": chat[:2], "stream": True, "logit_bias": {"5": -100}}),
        (
            "/v1/chat/completions",
            {**few, "messages": chat[:2], "guided_regex": "[ab]{2}", "thinking": {"type": "disabled"}},
        ),
        (
            "/v1/messages",
            {**few, "system": [{"type": "text", "text": "Be brief."}], "messages": blocks, "tools": [tool]},
        ),
        (
            "/v1/messages",
            {**few, "messages": blocks, "tools": [tool], "thinking": {"type": "enabled", "budget_tokens": 1024}},
        ),
        ("/v1/messages/count_tokens", {"model": "kimi-k2.6", "messages": blocks, "tools": [tool]}),
        (
            "/v1/responses",
            {"model": "kimi-k2.6", "input": items, "tools": [flat], "max_output_tokens": 16, "stream": True},
        ),
        ("/v1/responses", {"model": "kimi-k2.6", "input": items, "text": {"format": {"type": "json_object"}}}),
        ("/v1/completions", {**few, **limits, "prompt": ["a", "b"], "logprobs": 2, "echo": True}),
        ("/v1/completions", {**few, "prompt": [1, 2, 3], "stream": True, "suffix": ""}),
    ]
