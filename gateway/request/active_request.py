"""A running request: its choices as tasks, their events in one bounded queue."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace

from gateway.cluster.cluster import Cluster
from gateway.http.request_context import RequestContext
from gateway.http.stopping import Stopping
from gateway.metrics import INTER_TOKEN_SECONDS, TOKENS
from gateway.request.answer_model import (
    AnswerEvent,
    Content,
    Finish,
    FinishName,
    PromptTokens,
    Reasoning,
    Usage,
)
from gateway.request.batch_queue import BatchQueue
from gateway.request.generation import Generation, Start
from gateway.request.logprobs import TokenLog, prompt_tokens
from gateway.request.parsing import AnswerParser
from gateway.request.spans import trace_outcome
from gateway.settings import GatewaySettings
from protos.attention_pb2 import LENGTH, STOP
from protos.tokenizer_pb2 import ParseStart
from services.runtime.errors import DeadlineExceeded, InvalidRequest, MoonshardError

log = logging.getLogger(__name__)

MAX_EVENTS = 1024  # that a client may lag behind


class ActiveRequest:
    """Generates all choices of one request until the last has finished, one fails, or it is closed.

    events  of all choices, interleaved; ends after the last Finish, or with the MoonshardError that ended the request
    usage   token counts, growing
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: GatewaySettings,
        context: RequestContext,
        starts: Sequence[Start],
        parser: ParseStart,
        usage: Usage,
        *,
        num_per_prompt: int,
        stopping: Stopping,
        begun: Callable[[], None],
    ) -> None:
        self.events: BatchQueue[AnswerEvent] = BatchQueue(MAX_EVENTS)
        self.usage = usage
        self.usage.completion = [0] * len(starts)
        self.usage.reasoning = [0] * len(starts)
        self.num_choices = len(starts)
        self.occupied = ExitStack()  # what the request occupies until it is closed
        self._cluster = cluster
        self._stopping = stopping
        self._begun = begun  # to be called at the first token
        self._settings = settings
        self._context = context
        self._parser = parser
        self._last_s: list[float | None] = [None] * len(starts)  # when each choice's last token came
        self._generations = [
            Generation(cluster, settings, context, start, leads=choice == 0) for choice, start in enumerate(starts)
        ]
        self._num_per_prompt = num_per_prompt
        self._is_closed = False
        self._finishes: list[FinishName] = []
        self._shown: list[tuple[int, Content | Reasoning]] = []  # for the trace, where it may hold content
        self._with_prompt: set[int] = set()  # choices whose prompt was emitted
        self._logs = [TokenLog() if start.sampling.HasField("num_top_logprobs") else None for start in starts]
        self._task = asyncio.create_task(self._generate())
        self._task.add_done_callback(self._ended)

    @property
    def prompts(self) -> Sequence[Generation]:
        """The first generation of each prompt, which computes it; further choices find it in the prefix cache."""
        return self._generations[:: self._num_per_prompt]

    async def close(self) -> None:
        """Cancel whatever still runs, in this process and in the engines. May be called twice."""
        self._is_closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.occupied.close()

    async def _generate(self) -> None:
        try:
            left_s = self._context.left_s(self._settings.request_s)
            async with self._stopping.ending(), asyncio.timeout(left_s), asyncio.TaskGroup() as group:
                for choice in range(self.num_choices):
                    group.create_task(self._choose(choice))
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline of the request has passed") from error

    def _ended(self, task: asyncio.Task[None]) -> None:
        usage = self.usage
        TOKENS.labels("prompt").inc(usage.num_prompt_tokens)
        TOKENS.labels("cached").inc(usage.num_cached_tokens)
        TOKENS.labels("completion").inc(usage.num_completion_tokens)
        TOKENS.labels("reasoning").inc(usage.num_reasoning_tokens)
        self._context.meter.num_prompt_tokens += usage.num_prompt_tokens
        self._context.meter.num_completion_tokens += usage.num_completion_tokens
        # Work that breaks while it is given up is no mistake that anybody has to look at.
        error = None if task.cancelled() or self._is_closed else task.exception()
        ended_by = _first(error) if error is not None else None
        self.events.close(ended_by)
        fields = {
            "request_id": self._context.request_id,
            "trace_id": self._context.trace_id,
            "num_prompt_tokens": usage.num_prompt_tokens,
            "num_cached_tokens": usage.num_cached_tokens,
            "num_completion_tokens": usage.num_completion_tokens,
            "seconds": round(time.monotonic() - self._context.arrived_s, 4),
            "outcome": type(ended_by).__name__
            if ended_by
            else "left"
            if task.cancelled() or self._is_closed
            else "complete",
            # What is wrong with a request is said in the client's own words, which no log may hold.
            **({"error": ended_by.message} if ended_by and not isinstance(ended_by, InvalidRequest) else {}),
        }
        log.info("generated", extra=fields)
        trace_outcome(self._context, usage, self._finishes, ended_by, self._shown)

    async def _choose(self, choice: int) -> None:
        """Generate one choice, from its prompt to its Finish."""
        generation = self._generations[choice]
        first = choice - choice % self._num_per_prompt
        if choice > first:
            # The others find the prompt in the prefix cache.
            await self._generations[first].prompt_computed.wait()
        parser = AnswerParser(self._cluster, self._settings, self._context, self._parser, choice=choice)
        try:
            await self._parse(choice, generation, parser)
        finally:
            parser.close()

    async def _parse(self, choice: int, generation: Generation, parser: AnswerParser) -> None:
        """Turn tokens into events, until the tokens end or the answer is complete."""
        ends_itself = False
        async with aclosing(self._portions(generation)) as portions:
            async for token_ids in portions:
                await self._emit_prompt(choice)
                events = await parser.feed(token_ids)
                self._count(choice, self.usage.completion[choice] + len(token_ids), parser)
                await self._emit(choice, events, parser)
                if parser.stop is not None or 0 < self._parser.max_tool_calls <= parser.num_complete_calls:
                    # What came in the same message behind the end does not count.
                    truncated = generation.is_cut_before(self.usage.completion[choice])
                    break
            else:
                await self._emit_prompt(choice)
                ends_itself = generation.finish_reason == STOP
                truncated = generation.finish_reason == LENGTH or generation.is_cut_before(len(generation.token_ids))
                events = await parser.end(truncated=truncated)
                self._count(choice, len(generation.token_ids), parser)
                await self._emit(choice, events, parser)
        await self._emit_last_logprobs(choice, parser)
        self.usage.schema_left_out += [one for one in generation.left_out if one not in self.usage.schema_left_out]
        self._finishes.append(_finish_name(parser, truncated=truncated))
        stop_token = generation.token_ids[-1] if ends_itself and parser.stop is None else None
        await self.events.put(Finish(choice, self._finishes[-1], parser.stop, stop_token))

    async def _emit_prompt(self, choice: int) -> None:
        """Emit the prompt's log-probabilities before the first event of a choice, if they were asked for."""
        first = self._generations[choice - choice % self._num_per_prompt]
        if first.has_prompt_logprobs and choice not in self._with_prompt:
            self._with_prompt.add(choice)
            tokens = await prompt_tokens(first.prompt_ids, first.prompt_logprobs, self._token_bytes)
            await self.events.put(PromptTokens(choice, tokens))

    async def _emit_last_logprobs(self, choice: int, parser: AnswerParser) -> None:
        """Emit the log-probabilities of tokens that no text shows: all of a raw answer, none after a stop string."""
        log = self._logs[choice]
        if log is not None and (parser.stop is None or self._parser.raw) and (rest := log.rest()):
            await self.events.put(Content(choice, "", rest))

    async def _portions(self, generation: Generation) -> AsyncGenerator[list[int], None]:
        """Yield the tokens as they come; one at a time where one may end the answer, so that no later one counts."""
        one_by_one = self._parser.stop or self._parser.max_tool_calls
        async with aclosing(generation.tokens()) as batches:
            async for token_ids in batches:
                for portion in [[token_id] for token_id in token_ids] if one_by_one else [token_ids]:
                    yield portion

    def _count(self, choice: int, num_tokens: int, parser: AnswerParser) -> None:
        now_s = time.monotonic()
        num_new = num_tokens - self.usage.completion[choice]
        last_s, self._last_s[choice] = self._last_s[choice], now_s
        if last_s is None:
            self._begun()
            self._context.first_token.arrived(now_s - self._context.arrived_s)
        elif num_new:
            INTER_TOKEN_SECONDS.observe((now_s - last_s) / num_new)
        self.usage.num_cached_tokens = sum(g.num_cached_tokens for g in self._generations[:: self._num_per_prompt])
        self.usage.completion[choice] = num_tokens
        self.usage.reasoning[choice] = parser.num_reasoning_tokens

    async def _emit(self, choice: int, events: Sequence[AnswerEvent], parser: AnswerParser) -> None:
        log = self._logs[choice]
        if log is not None:
            generation = self._generations[choice]
            content = parser.content_positions
            # Of a raw answer every token that counts is logged, also one that shows no text.
            positions = range(log.num_tokens, self.usage.completion[choice]) if self._parser.raw else content
            hidden = set(positions).difference(content)
            await log.add(positions, generation.token_ids, generation.logprobs, self._token_bytes, hidden)
        for event in events:
            if self._settings.trace_content and isinstance(event, Content | Reasoning):
                self._shown.append((choice, event))
            await self.events.put(_with_logprobs(event, log))

    async def _token_bytes(self, token_ids: Iterable[int]) -> Mapping[int, bytes]:
        return await self._cluster.token_bytes(token_ids, self._context)


def _with_logprobs(event: AnswerEvent, log: TokenLog | None) -> AnswerEvent:
    if log is None or not isinstance(event, Content):
        return event
    return replace(event, logprobs=log.shown(event.text))


def _finish_name(parser: AnswerParser, *, truncated: bool) -> FinishName:
    if truncated:
        return "length"
    return "tool_calls" if parser.num_complete_calls else "stop"


def _first(error: BaseException) -> MoonshardError:
    """Return the first error of a group, for the client. A mistake of ours stays in the log."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, MoonshardError):
        return error
    log.error("a request broke", exc_info=error)
    return MoonshardError("the gateway failed")
