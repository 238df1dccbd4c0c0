"""Tokens of a choice into deltas, by a parser that may move to another tokenizer replica at any token."""

from collections.abc import Iterable, Sequence

from gateway.cluster.cluster import Cluster
from gateway.cluster.hand_over import HandOver
from gateway.cluster.replica import Replica
from gateway.http.request_context import RequestContext
from gateway.request.answer_model import AnswerEvent, CallArguments, CallEnd, CallStart, Content, Reasoning
from gateway.settings import GatewaySettings
from protos.tokenizer_pb2 import AnswerCommand, AnswerParts, Delta, ParseEnd, ParseStart
from services.runtime.errors import MoonshardError, WireError
from services.runtime.lanes.caller import Lane


class Delivered:
    """How much of each channel the client has, so that a parser which starts again repeats nothing.

    The pieces of a channel always concatenate to the same text, but a new parser may cut it differently.
    """

    def __init__(self, choice: int) -> None:
        self._choice = choice
        self._delivered: dict[tuple[str, int], int] = {}  # (channel, call) -> characters, or marks
        self._repeated: dict[tuple[str, int], int] = {}  # the same, of what a new parser will say again

    def restart(self) -> None:
        """Expect the next deltas from a new parser, from the first token on."""
        self._repeated = dict(self._delivered)

    def new(self, deltas: Iterable[Delta]) -> list[AnswerEvent]:
        """Return the parts of these deltas that were not delivered before."""
        return [new for delta in deltas if (new := self._new(delta)) is not None]

    def _new(self, delta: Delta) -> AnswerEvent | None:
        match delta.WhichOneof("piece"):
            case "content":
                text = self._advance(("content", 0), delta.content)
                return Content(self._choice, text) if text else None
            case "reasoning":
                text = self._advance(("reasoning", 0), delta.reasoning)
                return Reasoning(self._choice, text) if text else None
            case "tool_call_arguments":
                index = delta.tool_call_arguments.index
                text = self._advance(("arguments", index), delta.tool_call_arguments.text)
                return CallArguments(self._choice, index, text) if text else None
            case "tool_call_start":
                start = delta.tool_call_start
                is_new = self._advance(("start", start.index), "x")
                return CallStart(self._choice, start.index, start.id, start.name) if is_new else None
            case "tool_call_end":
                end = delta.tool_call_end
                return (
                    CallEnd(self._choice, end.index, end.complete) if self._advance(("end", end.index), "x") else None
                )
            case _:
                return None

    def _advance(self, channel: tuple[str, int], text: str) -> str:
        if self._repeated and (num_repeated := self._repeated.get(channel, 0)):
            num_skipped = min(num_repeated, len(text))
            self._repeated[channel] = num_repeated - num_skipped
            text = text[num_skipped:]
        self._delivered[channel] = self._delivered.get(channel, 0) + len(text)
        return text


class AnswerParser:
    """The parser of one choice. Owns the tokens it was given, and its lane to a tokenizer replica.

    stop                  the stop string that was met; nothing comes after it
    num_reasoning_tokens  so far
    num_complete_calls    so far
    content_positions     of the tokens whose text is content, the last command's only, if the start asks for them
    """

    def __init__(
        self, cluster: Cluster, settings: GatewaySettings, context: RequestContext, start: ParseStart, *, choice: int
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._context = context
        self._start = start
        self._token_ids: list[int] = []
        self._delivered = Delivered(choice)
        self._lane: Lane[AnswerCommand, AnswerParts] | None = None
        self._is_over = False
        self._replica: Replica
        self.stop: str | None = None
        self.num_reasoning_tokens = 0
        self.num_complete_calls = 0
        self.content_positions: list[int] = []

    async def feed(self, token_ids: Sequence[int]) -> list[AnswerEvent]:
        """Return the events that these tokens complete."""
        events = await self._ask(AnswerCommand(token_ids=token_ids))
        self._token_ids += token_ids
        return events

    async def end(self, *, truncated: bool) -> list[AnswerEvent]:
        """Return the rest of the events. `truncated`: the budget ended the answer, not the model."""
        events = await self._ask(AnswerCommand(end=ParseEnd(truncated=truncated)))
        self._is_over = True
        return events

    def close(self) -> None:
        """Give the lane up."""
        if self._lane is not None:
            self._lane.close(is_over=self._is_over)
            self._lane = None

    async def _ask(self, command: AnswerCommand) -> list[AnswerEvent]:
        """Send a command and return its events; rebuild a lost replica's parser on another from all tokens so far."""
        if self._lane is not None:
            try:
                return await self._exchange(self._lane, command)
            except MoonshardError as error:
                lost = error
        else:
            lost = None
        return await self._begin(command, lost)

    async def _begin(self, command: AnswerCommand, lost: MoonshardError | None) -> list[AnswerEvent]:
        """Send the first command of a parser that has the tokens so far; `lost`: what ended the last parser."""
        pool, choose = self._cluster.tokenizers, self._cluster.next_tokenizer
        hand_over = HandOver(pool, choose, self._context, self._settings, begun=True)
        while True:
            if lost is not None:
                self.close()
                await hand_over.failed(self._replica, lost)
            self._replica = await hand_over.next_replica()
            self._lane = self._replica.open_answer()
            self._delivered.restart()
            first = AnswerCommand(start=self._start, token_ids=self._token_ids)
            first.MergeFrom(command)
            first.start.call.CopyFrom(self._context.lane_call(self._settings.request_s))
            try:
                return await self._exchange(self._lane, first)
            except MoonshardError as error:
                lost = error

    async def _exchange(self, lane: Lane[AnswerCommand, AnswerParts], command: AnswerCommand) -> list[AnswerEvent]:
        """Return what is new in the answer to one command."""
        sent = lane.command()
        sent.MergeFrom(command)
        answers = await lane.receive(self._settings.tokenizer_s)
        if len(answers) != 1:
            raise WireError("a parser answered one command twice")
        answer = answers[0]
        if answer.HasField("stop"):
            self.stop = answer.stop
        self.num_reasoning_tokens = answer.num_reasoning_tokens
        self.num_complete_calls = answer.num_complete_calls
        if self._start.name_content:
            # A parser that begins anew names the earlier tokens too.
            num_known = len(self._token_ids)
            self.content_positions = [position for position in answer.content_positions if position >= num_known]
        return self._delivered.new(answer.deltas)
