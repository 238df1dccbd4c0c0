"""The parsers in the lanes of one stream."""

import asyncio
from functools import partial

import grpc

from protos import tokenizer_pb2 as pb
from protos.lanes_pb2 import LaneCall
from services.runtime.errors import RequestTooLarge
from services.runtime.lanes.records import LaneRecord, LaneRecords
from services.runtime.lanes.server import LaneServer
from services.tokenizer.invalid import invalid
from services.tokenizer.long_work import SHORT_BYTES, LongWork
from services.tokenizer.metrics import TOKENS, ParserMetrics
from services.tokenizer.parser import Parser
from services.tokenizer.parser_options import options_from_proto
from services.tokenizer.vocabulary import Vocabulary

ANSWER_TOKENS = TOKENS.labels("answers")


class AnswerLane:
    """The parser of one answer, from its start to its end, an error or the end of its caller.

    Short commands are answered at once. While a long one is in a thread, the lane takes no other.
    """

    def __init__(
        self,
        lane: int,
        server: LaneServer[pb.AnswerCommand, pb.AnswerParts],
        vocabulary: Vocabulary,
        work: LongWork,
        max_bytes: int,
        records: LaneRecords,
    ) -> None:
        self._lane = lane
        self._server = server
        self._vocabulary = vocabulary
        self._work = work
        self._max_bytes = max_bytes
        self._records = records
        self._record: LaneRecord | None = None
        self._parser: Parser | None = None
        self._task: asyncio.Task[None] | None = None

    def take(self, command: pb.AnswerCommand) -> None:
        """Answer a command."""
        if self._record is None:
            self._record = self._records.begin(command.start.call if command.HasField("start") else LaneCall())
        size_bytes = command.ByteSize()
        try:
            if size_bytes > self._max_bytes:
                rule = f"token_ids: {size_bytes} bytes in one command, at most {self._max_bytes}"
                raise RequestTooLarge(rule, field="token_ids")
            if self._task is not None:
                raise invalid("token_ids", "a command came before the last one was answered")
            if size_bytes > SHORT_BYTES:
                self._task = asyncio.create_task(self._apply_long(command, size_bytes))
                return
            self._apply(command)
        except Exception as error:  # noqa: BLE001
            self._fail(error)
        else:
            self._answer(command)

    def close(self) -> None:
        """Forget the parser."""
        if self._task is not None:
            self._task.cancel()
        if self._record is not None:
            self._record.end(grpc.StatusCode.CANCELLED)

    async def _apply_long(self, command: pb.AnswerCommand, size_bytes: int) -> None:
        try:
            await self._work.run(size_bytes, partial(self._apply, command))
        except Exception as error:  # noqa: BLE001
            self._fail(error)
        else:
            self._task = None
            self._answer(command)

    def _apply(self, command: pb.AnswerCommand) -> None:
        if command.HasField("start"):
            if self._parser is not None:
                raise invalid("start", "an answer has one start")
            self._parser = Parser(self._vocabulary, options_from_proto(command.start), ParserMetrics())
        if self._parser is None:
            raise invalid("start", "an answer begins with its start")
        if command.token_ids:
            self._parser.feed(command.token_ids)
        if command.HasField("end"):
            self._parser.end(truncated=command.end.truncated)

    def _answer(self, command: pb.AnswerCommand) -> None:
        parser, record = self._parser, self._record
        assert parser is not None
        assert record is not None
        is_last = command.HasField("end")
        parts = pb.AnswerParts(
            lane=self._lane,
            deltas=parser.take_deltas(),
            stop=parser.stop,
            num_reasoning_tokens=parser.num_reasoning_tokens,
            num_complete_calls=parser.num_complete_calls,
            content_positions=parser.take_content_positions(),
        )
        self._server.send(parts, is_last=is_last)
        ANSWER_TOKENS.inc(len(command.token_ids))
        if is_last:
            record.end(grpc.StatusCode.OK)

    def _fail(self, error: Exception) -> None:
        assert self._record is not None
        self._server.fail(self._lane, self._record.fail(error))
