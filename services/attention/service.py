"""AttentionService: requests become generations, the engine's events become answers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import grpc

from protos import attention_pb2 as pb
from protos import attention_pb2_grpc
from services.attention.constraint.requests import Constraints, only_bans_calls
from services.attention.engine.engine import Engine
from services.attention.engine.generation import Event, Failed, FinishReason, Generation, HandedOver, Milestones, Tokens
from services.attention.engine.spans import record_phases
from services.attention.metrics import GRAMMAR_COMPILE_SECONDS
from services.attention.requests import ReplicaLimits, generation_from_proto
from services.attention.sampling.on_host import SampledToken
from services.runtime.channels import request_id
from services.runtime.errors import Unavailable
from services.runtime.tracing import PARENT, Tracer

Context = grpc.aio.ServicerContext[Any, Any]

FINISH = {None: pb.FINISH_REASON_UNSPECIFIED, FinishReason.STOP: pb.STOP, FinishReason.LENGTH: pb.LENGTH}
IDLE_CHECK_S = 0.05


class AttentionServicer(attention_pb2_grpc.AttentionServiceServicer):
    """One replica. Its only state is whether it is shutting down."""

    def __init__(
        self, engine: Engine, constraints: Constraints, limits: ReplicaLimits, role: str, tracer: Tracer | None = None
    ) -> None:
        self._tracer = tracer
        self._engine = engine
        self._constraints = constraints
        self._limits = limits
        self._role = role
        self._draining = False

    async def Prefill(self, request: pb.PrefillRequest, context: Context) -> pb.PrefillResponse:
        with await self._generation(request, context, hand_over=True) as events:
            event = await events.get()
        assert isinstance(event, HandedOver)
        return pb.PrefillResponse(
            token_id=event.first.choice.token_id,
            finish_reason=FINISH[event.first.finish_reason],
            num_cached_tokens=event.num_cached,
            logprobs=_logprobs(event.first.choice),
            times=_times(event.milestones),
            cut=event.first.choice.is_cut,
            schema_left_out=events.left_out,
            manifest=pb.KvManifest(
                fingerprint=self._limits.names_root,
                block_hashes=event.block_names,
                tail_name=event.tail_name,
                num_tokens=event.num_tokens,
                offer=event.offer,
                further_sources=self._limits.further_shards if event.offer else (),
            ),
        )

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> AsyncIterator[pb.DecodeResponse]:
        with await self._generation(request, context, hand_over=False) as events:
            left_out: Sequence[str] = events.left_out
            while True:
                event = await events.get()
                assert isinstance(event, Tokens)
                yield pb.DecodeResponse(
                    token_ids=[choice.token_id for choice in event.choices],
                    finish_reason=FINISH[event.finish_reason],
                    num_cached_tokens=event.num_cached,
                    logprobs=[logprobs for choice in event.choices if (logprobs := _logprobs(choice))],
                    times=_times(event.milestones),
                    cut=any(choice.is_cut for choice in event.choices),
                    schema_left_out=left_out,
                    prompt_logprobs=[logprobs for score in event.prompt_scores if (logprobs := _logprobs(score))],
                )
                left_out = ()
                if event.finish_reason is not None:
                    return

    async def GetLoad(self, request: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        load = self._engine.load
        return pb.GetLoadResponse(
            role=self._role,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            max_waiting=self._limits.max_waiting,
            num_queued_tokens=load.num_queued_tokens,
            num_free_blocks=load.num_free_blocks,
            num_blocks=self._limits.num_blocks,
            block_tokens=self._limits.block_tokens,
            context_tokens=self._limits.context_tokens,
        )

    async def drain(self) -> None:
        """Refuse new requests, give streams back for another replica, and wait until the current prompts are done."""
        self._draining = True
        self._engine.drain()
        while self._engine.load.num_running or self._engine.load.num_waiting:
            await asyncio.sleep(IDLE_CHECK_S)

    async def _generation(
        self, request: pb.PrefillRequest | pb.DecodeRequest, context: Context, *, hand_over: bool
    ) -> "_Events":
        if self._draining:
            raise Unavailable("this replica is shutting down")
        events = _Events(self._engine, self._tracer)
        events.generation = generation_from_proto(
            request, self._limits, request_id=request_id(context), hand_over=hand_over, sink=events.sink
        )
        events.generation.trace_parent = PARENT.get()
        if request.sampling.HasField("constraint"):
            new = events.generation
            wanted = request.sampling.constraint
            if only_bans_calls(wanted):
                new.sampling = replace(new.sampling, banned_ids=self._constraints.call_markers)
            else:
                with GRAMMAR_COMPILE_SECONDS.time():
                    plan = await self._constraints.plan(wanted, request.prompt.tenant)
                    new.constraint = await self._constraints.start(
                        plan, new.token_ids, new.num_prompt, new.max_tokens, wanted.budget_field
                    )
                events.left_out = plan.left_out
        new = events.generation
        new.constraint = self._constraints.restrictions.add(
            new.constraint, request.sampling, new.token_ids, new.num_prompt
        )
        return events


def _times(at: Milestones | None) -> pb.FirstTokenTimes | None:
    if at is None:
        return None
    return pb.FirstTokenTimes(
        queue_s=at.admitted_s - at.arrived_s,
        fetch_s=at.started_s - at.admitted_s,
        compute_s=at.first_token_s - at.started_s,
        publish_s=max(0.0, at.published_s - at.first_token_s),
    )


def _logprobs(choice: SampledToken) -> pb.TokenLogprobs | None:
    if choice.logprob is None:
        return None
    return pb.TokenLogprobs(
        logprob=choice.logprob,
        top_token_ids=[token_id for token_id, _ in choice.top_logprobs],
        top_logprobs=[logprob for _, logprob in choice.top_logprobs],
    )


class _Events:
    """The events of one generation, which is cancelled when the request ends in any way."""

    def __init__(self, engine: Engine, tracer: Tracer | None) -> None:
        self._engine = engine
        self._tracer = tracer
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self.generation: Generation
        self.left_out: Sequence[str] = ()  # of the schemas of its constraint

    def sink(self, event: Event) -> None:
        """Take an event. Called on the engine's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def get(self) -> Event:
        event = await self._queue.get()
        if isinstance(event, Failed):
            raise event.error
        return event

    def __enter__(self) -> "_Events":
        self._engine.submit(self.generation)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.cancel(self.generation)
        if self._tracer is not None:
            record_phases(self._tracer, self.generation)
