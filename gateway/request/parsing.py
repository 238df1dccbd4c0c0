"""Tokens of a choice into deltas, by a parser that may move to another tokenizer replica at any token."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.cluster.cluster import Cluster
from gateway.cluster.hand_over import HandOver
from gateway.cluster.replicas import Replica
from gateway.http.request_context import RequestContext
from gateway.settings import GatewaySettings
from protos.tokenizer_pb2 import (
    Delta,
    ParseEnd,
    ParseRequest,
    ParseResponse,
    ParseStart,
    ParseTokens,
    ToolCallArguments,
)
from services.runtime.errors import DeadlineExceeded, MoonshardError, Unavailable


class Delivered:
    """How much of each channel the client has, so that a parser which starts again repeats nothing.

    The pieces of a channel always concatenate to the same text, but a new parser may cut it differently.
    """

    def __init__(self) -> None:
        self._delivered: dict[tuple[str, int], int] = {}  # (channel, call) -> characters, or marks
        self._position: dict[tuple[str, int], int] = {}  # the same, of the parser that runs now

    def restart(self) -> None:
        """Expect the next deltas from a new parser, from the first token on."""
        self._position.clear()

    def new(self, deltas: Iterable[Delta]) -> list[Delta]:
        """Return the parts of these deltas that were not delivered before."""
        return [new for delta in deltas if (new := self._new(delta)) is not None]

    def _new(self, delta: Delta) -> Delta | None:
        match delta.WhichOneof("piece"):
            case "reasoning":
                text = self._advance(("reasoning", 0), delta.reasoning)
                return Delta(reasoning=text) if text else None
            case "content":
                text = self._advance(("content", 0), delta.content)
                return Delta(content=text) if text else None
            case "tool_call_arguments":
                index = delta.tool_call_arguments.index
                text = self._advance(("arguments", index), delta.tool_call_arguments.text)
                return Delta(tool_call_arguments=ToolCallArguments(index=index, text=text)) if text else None
            case "tool_call_start":
                return delta if self._advance(("start", delta.tool_call_start.index), "x") else None
            case "tool_call_end":
                return delta if self._advance(("end", delta.tool_call_end.index), "x") else None
            case _:
                return None

    def _advance(self, channel: tuple[str, int], text: str) -> str:
        start = self._position.get(channel, 0)
        known = self._delivered.get(channel, 0)
        end = self._position[channel] = start + len(text)
        self._delivered[channel] = max(known, end)
        return text[max(0, known - start) :]


class AnswerParser:
    """The parser of one choice. Owns the tokens it was given, and its stream to a tokenizer replica.

    stop                  the stop string that was met; nothing comes after it
    num_reasoning_tokens  so far
    num_complete_calls    so far
    content_positions     of the tokens whose text is content, the last request's only
    """

    def __init__(self, cluster: Cluster, settings: GatewaySettings, context: RequestContext, start: ParseStart) -> None:
        self._cluster = cluster
        self._settings = settings
        self._context = context
        self._start = start
        self._token_ids: list[int] = []
        self._delivered = Delivered()
        self._stream: Any = None
        self._replica: Replica
        self.stop: str | None = None
        self.num_reasoning_tokens = 0
        self.num_complete_calls = 0
        self.content_positions: list[int] = []

    async def feed(self, token_ids: Sequence[int]) -> list[Delta]:
        """Return the deltas that these tokens complete."""
        deltas = await self._ask(ParseRequest(tokens=ParseTokens(token_ids=token_ids)))
        self._token_ids += token_ids
        return deltas

    async def end(self, *, truncated: bool) -> list[Delta]:
        """Return the rest of the deltas. `truncated`: the budget ended the answer, not the model."""
        return await self._ask(ParseRequest(end=ParseEnd(truncated=truncated)))

    def close(self) -> None:
        """Give the stream up."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def _ask(self, request: ParseRequest) -> list[Delta]:
        """Send one request and return its deltas; rebuild a lost replica's parser on another from all tokens so far."""
        fresh: list[Delta] = []
        pool, choose = self._cluster.tokenizers, self._cluster.next_tokenizer
        hand_over = HandOver(pool, choose, self._context, self._settings, begun=True)
        while True:
            try:
                if self._stream is None:
                    self._replica = await hand_over.next_replica()
                    fresh += await self._open(self._replica)
                    if self._token_ids:
                        fresh += await self._exchange(ParseRequest(tokens=ParseTokens(token_ids=self._token_ids)))
                return fresh + await self._exchange(request)
            except MoonshardError as error:
                if self._stream is None:
                    raise  # there is no replica
                self.close()
                await hand_over.failed(self._replica, error)

    async def _open(self, replica: Replica) -> list[Delta]:
        self._stream = replica.tokenizer.Parse(
            timeout=self._context.left_s(self._settings.request_s), metadata=self._context.metadata
        )
        self._delivered.restart()
        return await self._exchange(ParseRequest(start=self._start))

    async def _exchange(self, request: ParseRequest) -> list[Delta]:
        """Return the new deltas in the response to one request."""
        try:
            async with asyncio.timeout(self._settings.tokenizer_s):
                await self._stream.write(request)
                response = await self._stream.read()
        except TimeoutError as error:
            raise DeadlineExceeded("the parser does not answer") from error
        if not isinstance(response, ParseResponse):
            raise Unavailable("the parser ended its stream")
        if response.HasField("stop"):
            self.stop = response.stop
        self.num_reasoning_tokens = response.num_reasoning_tokens
        self.num_complete_calls = response.num_complete_calls
        self.content_positions = list(response.content_positions)
        return self._delivered.new(response.deltas)
