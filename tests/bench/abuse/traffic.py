"""Requests of every dialect whose answers are known to the letter, and clients of which some leave at any moment."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from tests.cluster.pictures import data_url, noise, png

TIMEOUT_S = 300.0
NUM_TOKENS = 48
QUESTIONS = ("What is 2 + 3?", "Which is larger, 17 or 71?", "Say the days of the week.", "Name three animals.")
LOOK_UP = {
    "name": "look_up",
    "parameters": {
        "type": "object",
        "properties": {"key": {"type": "string", "maxLength": 12}},
        "required": ["key"],
    },
}
ANSWER = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}


@dataclass(frozen=True, eq=False)
class Question:
    """One request that always gets the same answer."""

    name: str
    path: str
    body: Mapping[str, Any]


def questions() -> list[Question]:
    """Return questions of all dialects, whole and as streams, with tools, forms and a picture."""
    found = []
    shown = data_url(png(noise(1, (120, 80))))
    for number, text in enumerate(QUESTIONS):
        user = [{"role": "user", "content": text}]
        same = {"model": "kimi-k2.6", "temperature": 0.0}
        chat = {**same, "messages": user, "max_tokens": NUM_TOKENS}
        picture = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": shown}}]
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": ANSWER, "strict": True}}
        tools = {"tools": [{"type": "function", "function": LOOK_UP}], "tool_choice": "required"}
        bodies = {
            "chat": ("/v1/chat/completions", chat),
            "tools": ("/v1/chat/completions", {**chat, **tools}),
            "form": ("/v1/chat/completions", {**chat, "response_format": form}),
            "picture": ("/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": picture}]}),
            "messages": ("/v1/messages", chat),
            "responses": ("/v1/responses", {**same, "input": text, "max_output_tokens": NUM_TOKENS, "store": False}),
            "completions": ("/v1/completions", {**same, "prompt": text, "max_tokens": NUM_TOKENS}),
        }
        for name, (path, body) in bodies.items():
            for stream in (False, True):
                kind = f"{name}{' stream' if stream else ''}"
                found.append(Question(f"{kind} {number}", path, {**body, "stream": stream}))
    return found


class Tally:
    """What became of the requests so far.

    counts  of each outcome
    notes   the first of everything that should not be
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []

    def note(self, outcome: str, text: str) -> None:
        self.counts[outcome] += 1
        if len(self.notes) < 20:
            self.notes.append(f"{outcome}: {text}")


async def ask(http: httpx.AsyncClient, question: Question) -> tuple[int, str]:
    """Return the status and the text of an answer; raises if the connection or the stream is cut."""
    async with http.stream("POST", question.path, json=question.body) as response:
        if response.status_code != 200:
            await response.aread()
            wait = response.headers.get("retry-after", "")
            return response.status_code, f"retry-after {wait}: {response.text[:200]}"
        if not question.body["stream"]:
            return 200, text_of(json.loads(await response.aread()))
        return 200, await text_of_stream(response.aiter_lines())


async def text_of_stream(lines: AsyncIterator[str]) -> str:
    """Return all text of a stream; ConnectionError if it ends without its last event."""
    text, is_whole = "", False
    async for line in lines:
        data = line.removeprefix("data: ")
        if data == line:
            continue
        if data == "[DONE]":
            is_whole = True
            continue
        event = json.loads(data)
        if event.get("error") or event.get("type") in ("error", "response.failed"):
            raise ConnectionError(data[:200])
        is_whole |= event.get("type") in ("message_stop", "response.completed", "response.incomplete")
        text += text_of_event(event)
    if not is_whole:
        raise ConnectionError("the stream ends early")
    return text


def text_of_event(event: Any) -> str:
    """Return the text, thought or arguments that an event adds."""
    for choice in event.get("choices", ()):
        delta = choice.get("delta", choice)
        calls = [call["function"].get("arguments") or "" for call in delta.get("tool_calls") or ()]
        texts = [delta.get(key) for key in ("reasoning_content", "content", "text")]
        return "".join([*(text for text in texts if text), *calls])
    if isinstance(event.get("delta"), str):
        return str(event["delta"])
    delta = event.get("delta") or {}
    return "".join(delta.get(key) or "" for key in ("thinking", "text", "partial_json"))


def text_of(body: Any) -> str:
    """Return all that a whole answer says, without its names and times."""
    said = {key: body[key] for key in ("choices", "content", "output") if key in body}
    return json.dumps(_without_names(said))


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_names(one) for key, one in value.items() if key not in ("id", "call_id", "signature")}
    return [_without_names(one) for one in value] if isinstance(value, list) else value


async def clients(
    http: httpx.AsyncClient, num_clients: int, until_s: float, share_leaving: float, tally: Tally
) -> None:
    """Ask at random for a time, some leaving at any moment, and compare every answer with the first one."""
    known = {question: await ask(http, question) for question in questions()}
    for question, (status, text) in known.items():
        if status != 200:
            tally.note("not answered", f"{question.name} {status} {text}")
    loop = asyncio.get_running_loop()
    end_s = loop.time() + until_s
    usual_s = 1.0  # of an answer, lately

    async def client(number: int) -> None:
        nonlocal usual_s
        dice = random.Random(number)
        while loop.time() < end_s:
            question = dice.choice(list(known))
            leaves_s = dice.uniform(0, 1.5 * usual_s) if dice.random() < share_leaving else TIMEOUT_S
            started_s = loop.time()
            try:
                async with asyncio.timeout(leaves_s):
                    status, text = await ask(http, question)
            except TimeoutError:
                left = leaves_s < TIMEOUT_S
                tally.note("lost", f"{question.name}: no answer") if not left else tally.counts.update(["left"])
                continue
            except (httpx.HTTPError, ConnectionError, ValueError) as error:
                tally.note("lost", f"{question.name}: {type(error).__name__} {error}")
                continue
            usual_s += 0.1 * (loop.time() - started_s - usual_s)
            if (status, text) == known[question]:
                tally.counts["right"] += 1
            elif status == 200:
                tally.note("wrong", f"{question.name}: {text!r}, not {known[question][1]!r}"[:600])
            elif status in (429, 503) and not text.startswith("retry-after :"):
                tally.counts[f"{status} with Retry-After"] += 1
            else:
                tally.note(f"status {status}", f"{question.name}: {text}")

    await asyncio.gather(*(client(number) for number in range(num_clients)))
