"""The TokenizerService of protos/tokenizer.proto."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc.aio
from google.protobuf.message import Message as ProtoMessage

from protos import tokenizer_pb2 as pb
from protos.tokenizer_pb2_grpc import TokenizerServiceServicer
from services.runtime.errors import RequestTooLarge
from services.runtime.lanes.records import LANES
from services.runtime.lanes.server import LaneServer, LaneServers
from services.tokenizer.answers import AnswerLane
from services.tokenizer.bounds import check_conversation
from services.tokenizer.long_work import LongWork
from services.tokenizer.metrics import TOKENS
from services.tokenizer.rendering import Renderer
from services.tokenizer.vocabulary import Vocabulary

Context = grpc.aio.ServicerContext[Any, Any]


class TokenizerServicer(TokenizerServiceServicer):
    """Text to tokens and back. Stateless between calls; a parser lives as long as its answer."""

    def __init__(
        self, vocabulary: Vocabulary, work: LongWork, max_request_bytes: int, max_remembered_bytes: int
    ) -> None:
        self._vocabulary = vocabulary
        self._renderer = Renderer(vocabulary, max_remembered_bytes)
        self._work = work
        self._streams = LaneServers()
        self._max_request_bytes = max_request_bytes

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return pb.DescribeResponse(
            vocab_size=self._vocabulary.size,
            context_tokens=self._vocabulary.context_tokens,
            stop_token_ids=self._vocabulary.stop_ids,
            special_tokens=self._vocabulary.special_ids,
            revision=self._vocabulary.revision,
        )

    async def Render(self, request: pb.RenderRequest, context: Context) -> pb.RenderResponse:
        size_bytes = self._size(request, "messages")
        check_conversation(request, self._vocabulary.context_tokens)
        response = await self._work.run(size_bytes, partial(self._renderer.render, request))
        TOKENS.labels("prompts").inc(len(response.token_ids))
        return response

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        encode = self._vocabulary.encode_with_special if request.allow_special else self._vocabulary.encode
        token_ids = await self._work.run(self._size(request, "text"), partial(encode, request.text))
        TOKENS.labels("texts").inc(len(token_ids))
        return pb.EncodeResponse(token_ids=token_ids)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        return await self._work.run(self._size(request, "token_ids"), partial(_detokenize, request, self._vocabulary))

    async def ParseAnswers(
        self, requests: AsyncIterator[pb.ParseAnswersRequest], context: Context
    ) -> AsyncIterator[pb.ParseAnswersResponse]:
        records = LANES.get()
        stream: LaneServer[pb.AnswerCommand, pb.AnswerParts] = LaneServer(
            pb.AnswerParts,
            lambda lane, server: AnswerLane(
                lane, server, self._vocabulary, self._work, self._max_request_bytes, records
            ),
        )
        with self._streams.serving(stream):
            async with aclosing(stream.serve(requests)) as batches:
                async for parts in batches:
                    yield pb.ParseAnswersResponse(parts=parts)

    async def drain(self) -> None:
        """Begin no more answers; those that are being parsed go on."""
        self._streams.drain()

    def _size(self, request: ProtoMessage, field: str) -> int:
        size_bytes = request.ByteSize()
        if size_bytes > self._max_request_bytes:
            raise RequestTooLarge(f"{field}: {size_bytes} bytes, at most {self._max_request_bytes}", field=field)
        return size_bytes


def _detokenize(request: pb.DetokenizeRequest, vocabulary: Vocabulary) -> pb.DetokenizeResponse:
    token_bytes = vocabulary.token_bytes(request.token_ids, skip_special=request.skip_special)
    return pb.DetokenizeResponse(text=b"".join(token_bytes).decode(errors="replace"), token_bytes=token_bytes)
