"""Output items: what a run's events add up to, and the stream's events on the way there."""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.dialects.chat.answer import logprobs_of
from gateway.dialects.opaque_reasoning import seal
from gateway.request.chat_model import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    Finish,
    Reasoning,
    TokenLogprob,
)

Happening = tuple[str, dict[str, Any]]
"""Name and fields of one event of the stream."""

PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
PART_TYPES = {"reasoning": "reasoning_text", "message": "output_text"}


class ItemBuilder:
    """Owns the items of one response. One item is open at a time.

    output  finished items; a call that the budget cut is not among them
    """

    def __init__(self, *, seals_reasoning: bool) -> None:
        self.output: list[dict[str, Any]] = []
        self._seals_reasoning = seals_reasoning
        self._item: dict[str, Any] = {}  # the open one, as it was announced; empty if none is
        self._pieces: list[str] = []  # its text or arguments
        self._logprobs: list[TokenLogprob] = []  # of its text, if they were asked for
        self._num_items = 0

    def take(self, event: Event) -> Iterator[Happening]:
        """What happens in the stream because of an event."""
        match event:
            case Reasoning():
                yield from self._enter("reasoning", summary=[], content=[])
                yield self._delta("response.reasoning_text.delta", event.text, content_index=0)
            case Content():
                yield from self._write(event)
            case CallStart():
                yield from self._leave("completed")
                call = {"call_id": event.id, "name": event.name, "arguments": "", "status": "in_progress"}
                yield from self._enter("function_call", **call)
            case CallArguments():
                yield self._delta("response.function_call_arguments.delta", event.text)
            case CallEnd():
                yield from self._leave("completed" if event.complete else "incomplete")
            case Finish():
                yield from self._leave("incomplete" if event.reason == "length" else "completed")

    def _write(self, event: Content) -> Iterator[Happening]:
        if event.text:
            yield from self._enter("message", status="in_progress", role="assistant", content=[])
            logprobs = _without_bytes(event.logprobs)
            yield self._delta("response.output_text.delta", event.text, content_index=0, logprobs=logprobs)
        # Without a text they are of tokens at the end that show none.
        self._logprobs += event.logprobs if self._kind == "message" else ()

    @property
    def _kind(self) -> str:
        return str(self._item.get("type", ""))

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": self._num_items - 1}

    def _delta(self, name: str, text: str, **fields: Any) -> Happening:
        self._pieces.append(text)
        return name, {**self._place, **fields, "delta": text}

    def _enter(self, kind: str, **fields: Any) -> Iterator[Happening]:
        if self._kind == kind:
            return
        yield from self._leave("completed")
        self._item = {"id": f"{PREFIXES[kind]}_{secrets.token_hex(12)}", "type": kind, **fields}
        self._num_items += 1
        yield "response.output_item.added", {"output_index": self._num_items - 1, "item": self._item}
        if kind in PART_TYPES:
            yield "response.content_part.added", {**self._place, "content_index": 0, "part": self._part("")}

    def _leave(self, status: str) -> Iterator[Happening]:
        if not self._item:
            return
        text = "".join(self._pieces)
        match self._kind:
            case "reasoning":
                item = {**self._item, "content": [self._part(text)]}
                if self._seals_reasoning:
                    item["encrypted_content"] = seal(text)
                yield "response.reasoning_text.done", {**self._place, "content_index": 0, "text": text}
            case "message":
                item = {**self._item, "content": [self._part(text)], "status": status}
                logprobs = _without_bytes(self._logprobs)
                done = {**self._place, "content_index": 0, "text": text, "logprobs": logprobs}
                yield "response.output_text.done", done
            case _:
                item = {**self._item, "arguments": text, "status": status}
                yield "response.function_call_arguments.done", {**self._place, "arguments": text}
        if self._kind in PART_TYPES:
            yield "response.content_part.done", {**self._place, "content_index": 0, "part": self._part(text)}
        yield "response.output_item.done", {"output_index": self._num_items - 1, "item": item}
        if self._kind != "function_call" or status == "completed":
            self.output.append(item)
        self._item = {}
        self._pieces.clear()
        self._logprobs.clear()

    def _part(self, text: str) -> dict[str, Any]:
        if self._kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = logprobs_of(self._logprobs)["content"]
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _without_bytes(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As the stream's text events carry them."""
    return [
        {
            "token": token["token"],
            "logprob": token["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in token["top_logprobs"]],
        }
        for token in logprobs_of(tokens)["content"]
    ]
