"""A scripted AttentionService: keeps the contract of protos/attention.proto, answers by script, breaks on command."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import grpc.aio

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import AttentionServiceServicer, add_AttentionServiceServicer_to_server
from services.runtime.errors import MoonshardError, Unavailable
from services.runtime.lanes.server import LaneServer
from services.runtime.server import start_server

BLOCK_TOKENS = 64
Script = Callable[[Sequence[int], pb.Sampling], list[int]]  # (prompt, sampling) -> the whole answer, stop included


class Engine(AttentionServiceServicer):
    """One replica. Tests change the fields below; what was asked for is in `prefills` and `decodes`.

    token_s       time per token
    num_at_once   tokens per message
    prefill_s     time per prompt
    prefill_slots prompts that are computed at once; the others wait
    die_after     tokens of a stream after which the whole server is gone; counts once, then it is None
    hang_after    tokens of a stream after which nothing comes any more
    fail_after    tokens of a stream after which `failure` is raised
    failure       raised at once without fail_after
    num_failures  how often it is raised; None: always
    num_cached    tokens of each prompt that count as cached
    cut_at        place in the answer of a token that stands for another one; it ends its message
    left_out      keywords of schemas that are not enforced
    offer         under which it holds the blocks of each prompt
    """

    def __init__(self, role: str, script: Script) -> None:
        self.role = role
        self.script = script
        self.token_s = 0.0
        self.num_at_once = 1
        self.prefill_s = 0.0
        self.prefill_slots = asyncio.Semaphore(10_000)
        self.die_after: int | None = None
        self.hang_after: int | None = None
        self.fail_after: int | None = None
        self.failure: MoonshardError | None = None
        self.num_failures: int | None = None
        self.num_cached = 0
        self.cut_at: int | None = None
        self.left_out: list[str] = []
        self.offer = ""
        self.load = pb.GetLoadResponse(num_free_blocks=100, num_blocks=100, block_tokens=BLOCK_TOKENS, max_waiting=8)
        self.prefills: list[pb.PrefillRequest] = []
        self.decodes: list[pb.GenerationStart] = []
        self.metadata: list[dict[str, str]] = []
        self.num_running = 0
        self.num_cancelled = 0
        self.num_sent = 0
        self.num_streams = 0
        self.address = "127.0.0.1:0"
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serves, after a stop again under the same address."""
        self._server, self.address = await start_server(
            lambda server: add_AttentionServiceServicer_to_server(self, server), self.address
        )

    @property
    def is_up(self) -> bool:
        return self._server is not None

    async def stop(self) -> None:
        """Gone at once: streams break."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def Prefill(self, request, context):
        self.prefills.append(request)
        self._note(context)
        answer = self._answer(request)
        await self._fail_at(0)
        async with self.prefill_slots:
            await asyncio.sleep(self.prefill_s)
        return pb.PrefillResponse(
            token_id=answer[0],
            finish_reason=self._finish(answer, 1, request.sampling),
            manifest=pb.KvManifest(fingerprint=b"f", num_tokens=len(request.prompt.token_ids), offer=self.offer),
            num_cached_tokens=self.num_cached,
            logprobs=logprobs_at(answer, 0, request.sampling),
            cut=self.cut_at == 0,
            schema_left_out=self.left_out,
        )

    async def Generate(self, requests, context):
        self.num_streams += 1
        stream = LaneServer(pb.GenerationTokens, lambda lane, server: ScriptedLane(self, lane, server))
        async for parts in stream.serve(requests):
            yield pb.GenerateResponse(parts=parts)

    async def decode(self, start: pb.GenerationStart) -> AsyncIterator[pb.GenerationTokens]:
        """Yield the messages of one generation."""
        self.decodes.append(start)
        self.metadata.append({"x-request-id": start.call.request_id, "traceparent": start.call.traceparent})
        answer = self._answer(start)
        position = len(start.prompt.token_ids) - start.prompt.num_prompt_tokens
        assert position < start.sampling.max_new_tokens
        assert list(start.prompt.token_ids)[start.prompt.num_prompt_tokens :] == answer[:position]
        num_sent = 0
        finish = pb.FINISH_REASON_UNSPECIFIED
        while finish == pb.FINISH_REASON_UNSPECIFIED:
            token_ids: list[int] = []
            first = position
            while finish == pb.FINISH_REASON_UNSPECIFIED and len(token_ids) < self.num_at_once:
                await self._fail_at(num_sent)
                await asyncio.sleep(self.token_s)
                token_ids.append(answer[position])
                position += 1
                num_sent += 1
                finish = self._finish(answer, position, start.sampling)
                if self.cut_at == position - 1:
                    break
            self.num_sent += len(token_ids)
            yield pb.GenerationTokens(
                token_ids=token_ids,
                finish_reason=finish,
                num_cached_tokens=self.num_cached if num_sent == len(token_ids) else 0,
                cut=self.cut_at == position - 1,
                schema_left_out=self.left_out if num_sent == len(token_ids) else [],
                logprobs=[
                    logprobs for at in range(first, position) if (logprobs := logprobs_at(answer, at, start.sampling))
                ],
                prompt_logprobs=prompt_logprobs(start) if num_sent == len(token_ids) else (),
            )

    async def GetLoad(self, request, context):
        return self.load

    def _answer(self, request: pb.PrefillRequest | pb.GenerationStart) -> list[int]:
        prompt = request.prompt
        return self.script(list(prompt.token_ids)[: prompt.num_prompt_tokens], request.sampling)

    def _finish(self, answer: Sequence[int], num_tokens: int, sampling: pb.Sampling) -> pb.FinishReason:
        if answer[num_tokens - 1] in sampling.stop_token_ids:
            return pb.STOP
        assert num_tokens < len(answer) or num_tokens >= sampling.max_new_tokens, "the script ends without a stop"
        return pb.LENGTH if num_tokens >= sampling.max_new_tokens else pb.FINISH_REASON_UNSPECIFIED

    async def _fail_at(self, num_sent: int) -> None:
        if self.die_after == num_sent:
            self.die_after = None
            # Not awaited: the server waits for this very call.
            self._dying = asyncio.create_task(self.stop())
            await asyncio.sleep(60)
        if self.hang_after == num_sent:
            await asyncio.sleep(600)
        if self.failure is not None and self.num_failures != 0 and (self.fail_after or 0) == num_sent:
            if self.num_failures is not None:
                self.num_failures -= 1
            raise self.failure

    def _note(self, context) -> None:
        self.metadata.append(dict(context.invocation_metadata()))


class ScriptedLane:
    """One generation of a stream."""

    def __init__(self, engine: Engine, lane: int, server: LaneServer) -> None:
        self._engine = engine
        self._lane = lane
        self._server = server

    def take(self, command: pb.GenerationCommand) -> None:
        self._task = asyncio.create_task(self._run(command.start))

    def close(self) -> None:
        self._engine.num_cancelled += 1
        self._task.cancel()

    async def _run(self, start: pb.GenerationStart) -> None:
        self._engine.num_running += 1
        try:
            async for part in self._engine.decode(start):
                part.lane = self._lane
                self._server.send(part, is_last=part.finish_reason != pb.FINISH_REASON_UNSPECIFIED)
                await asyncio.sleep(0)  # as a real step does: what was sent goes out before the next
        except MoonshardError as error:
            self._server.fail(self._lane, error)
        finally:
            self._engine.num_running -= 1


def logprobs_at(answer: Sequence[int], position: int, sampling: pb.Sampling) -> pb.TokenLogprobs | None:
    """Numbers that tell the position, if they were asked for: the token itself is likeliest, then 1, 2, ..."""
    if not sampling.HasField("num_top_logprobs"):
        return None
    num_top = sampling.num_top_logprobs
    return pb.TokenLogprobs(
        logprob=-position / 4,
        top_token_ids=[answer[position], *range(1, num_top)][:num_top],
        top_logprobs=[-(position + 1) / 4 - rank for rank in range(num_top)],
    )


def prompt_logprobs(request: pb.GenerationStart) -> list[pb.TokenLogprobs]:
    """Numbers that tell the position, if they were asked for; token 7 is always the likeliest."""
    if not request.sampling.HasField("num_prompt_logprobs"):
        return []
    num_top = request.sampling.num_prompt_logprobs
    return [
        pb.TokenLogprobs(
            logprob=-at,
            top_token_ids=list(range(7, 7 + num_top)),
            top_logprobs=[-at / 2 - rank for rank in range(num_top)],
        )
        for at in range(1, request.prompt.num_prompt_tokens)
    ]


def gone() -> MoonshardError:
    """What a draining replica answers."""
    return Unavailable("draining")
