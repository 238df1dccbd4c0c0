"""One replica as a gateway knows it: its load, and the streams that its calls share."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.message import Message

from protos.attention_pb2 import GenerateRequest, GenerationCommand, GenerationTokens, GetLoadResponse
from protos.attention_pb2_grpc import AttentionServiceStub
from protos.tokenizer_pb2 import AnswerCommand, AnswerParts, ParseAnswersRequest
from protos.tokenizer_pb2_grpc import TokenizerServiceStub
from protos.vision_pb2_grpc import VisionServiceStub
from services.runtime.errors import Unavailable
from services.runtime.lanes.caller import Lane, LaneStream

if TYPE_CHECKING:
    from protos.attention_pb2_grpc import AttentionServiceAsyncStub
    from protos.tokenizer_pb2_grpc import TokenizerServiceAsyncStub
    from protos.vision_pb2_grpc import VisionServiceAsyncStub

MAX_UNREAD_ANSWERS = 4  # a command is sent when the answer to the last one was read


@dataclass(slots=True, eq=False)
class Replica:
    """One address of a role. Owned by its pool, which alone changes it."""

    address: str
    channel: grpc.aio.Channel
    serving: bool = False
    load: GetLoadResponse = field(default_factory=GetLoadResponse)
    sent: list[tuple[float, int]] = field(default_factory=list)  # (when, tokens) of calls the load doesn't show yet
    num_rendering: int = 0  # open calls that render a conversation
    streams: dict[str, LaneStream[Any, Any]] = field(default_factory=dict)  # that take lanes, by method

    @property
    def attention(self) -> "AttentionServiceAsyncStub":
        return AttentionServiceStub(self.channel)

    @property
    def tokenizer(self) -> "TokenizerServiceAsyncStub":
        return TokenizerServiceStub(self.channel)

    @property
    def vision(self) -> "VisionServiceAsyncStub":
        return VisionServiceStub(self.channel)

    def open_generation(self, max_tokens: int) -> Lane[GenerationCommand, GenerationTokens]:
        """Open a lane for a generation of at most so many tokens, on the stream of all generations."""
        return self._stream("Generate", self.attention.Generate, GenerateRequest).open(max_tokens)

    def open_answer(self) -> Lane[AnswerCommand, AnswerParts]:
        """Open a lane for an answer that is to be parsed, on the stream of all answers."""
        return self._stream("ParseAnswers", self.tokenizer.ParseAnswers, ParseAnswersRequest).open(MAX_UNREAD_ANSWERS)

    def retire_streams(self) -> None:
        """Let the streams end with their last lanes."""
        for stream in self.streams.values():
            stream.retire()
        self.streams.clear()

    async def close(self) -> None:
        """End the streams and close the channel."""
        for stream in self.streams.values():
            stream.end(Unavailable("the gateway stops"))
        await self.channel.close()

    def _stream(self, name: str, call: Callable[[], Any], request: type[Message]) -> LaneStream[Any, Any]:
        stream = self.streams.get(name)
        if stream is None or not stream.takes_lanes:
            if stream is not None:
                stream.retire()
            stream = self.streams[name] = LaneStream(call(), request, self.address)
        return stream

    @property
    def sent_tokens(self) -> int:
        """Return the tokens of the calls that were sent since the last report."""
        return sum(num_tokens for _, num_tokens in self.sent)

    @property
    def queued_tokens(self) -> int:
        """Return the prompt tokens that wait to be computed, those sent since the last report included."""
        return self.load.num_queued_tokens + self.sent_tokens

    @property
    def free_blocks(self) -> int:
        """Return the free blocks, less those for calls sent since the last report."""
        block_tokens = max(1, self.load.block_tokens)
        return self.load.num_free_blocks - sum(-(-num_tokens // block_tokens) for _, num_tokens in self.sent)

    @property
    def is_full(self) -> bool:
        """Return whether its queue takes no more; a replica without a report counts as empty."""
        return 0 < self.load.max_waiting <= self.load.num_waiting

    def note_sent(self, num_tokens: int) -> None:
        """Note a call with so many tokens that goes there now."""
        self.sent.append((time.monotonic(), num_tokens))

    def report(self, load: GetLoadResponse, asked_s: float) -> None:
        """Take a report that was requested at that time; it contains what was sent before."""
        self.load = load
        self.sent = [(when, num_tokens) for when, num_tokens in self.sent if when >= asked_s]
