"""AttentionService: requests become generations, the engine's events become answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import grpc

from protos import attention_pb2 as pb
from protos import attention_pb2_grpc
from services.attention.constraint.requests import Constraints, only_bans_calls
from services.attention.engine.engine import Engine
from services.attention.engine.generation import Event, Failed, HandedOver
from services.attention.generations import (
    FINISH,
    Begun,
    GenerationLane,
    StepCollector,
    logprobs_of,
    running,
    times_of,
)
from services.attention.metrics import GRAMMAR_COMPILE_SECONDS
from services.attention.requests import ReplicaLimits, generation_from_proto
from services.runtime.channels import request_id
from services.runtime.errors import Unavailable
from services.runtime.lanes.records import LANES
from services.runtime.lanes.server import LaneServer, LaneServers
from services.runtime.tracing import PARENT, Tracer

Context = grpc.aio.ServicerContext[Any, Any]

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
        self._streams = LaneServers()

    async def Prefill(self, request: pb.PrefillRequest, context: Context) -> pb.PrefillResponse:
        answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        begun = await self._begin(
            request,
            request_id=request_id(context),
            trace_parent=PARENT.get(),
            sink=StepCollector().sink(partial(_settle, answer)),
            hand_over=True,
        )
        with running(self._engine, begun.generation, self._tracer):
            event = await answer
        assert isinstance(event, HandedOver)
        return pb.PrefillResponse(
            token_id=event.first.choice.token_id,
            finish_reason=FINISH[event.first.finish_reason],
            num_cached_tokens=event.num_cached,
            logprobs=logprobs_of(event.first.choice),
            times=times_of(event.milestones),
            cut=event.first.choice.is_cut,
            schema_left_out=begun.left_out,
            manifest=pb.KvManifest(
                fingerprint=self._limits.names_root,
                block_hashes=event.block_names,
                tail_name=event.tail_name,
                num_tokens=event.num_tokens,
                offer=event.offer,
                further_sources=self._limits.further_shards if event.offer else (),
            ),
        )

    async def Generate(
        self, requests: AsyncIterator[pb.GenerateRequest], context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        steps, records = StepCollector(), LANES.get()
        begin = partial(self._begin, hand_over=False)
        stream: LaneServer[pb.GenerationCommand, pb.GenerationTokens] = LaneServer(
            pb.GenerationTokens,
            lambda lane, server: GenerationLane(lane, server, self._engine, self._tracer, begin, steps, records),
        )
        with self._streams.serving(stream):
            async with aclosing(stream.serve(requests)) as batches:
                async for parts in batches:
                    yield pb.GenerateResponse(parts=parts)

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
        self._streams.drain()

    async def _begin(
        self,
        request: pb.PrefillRequest | pb.GenerationStart,
        *,
        request_id: str,
        trace_parent: str,
        sink: Callable[[Event], None],
        hand_over: bool,
    ) -> Begun:
        """Return the generation that a request asks for, and what of its schemas is not enforced."""
        if self._draining:
            raise Unavailable("this replica is shutting down")
        new = generation_from_proto(request, self._limits, request_id=request_id, hand_over=hand_over, sink=sink)
        new.trace_parent = trace_parent
        left_out: Sequence[str] = ()
        if request.sampling.HasField("constraint"):
            wanted = request.sampling.constraint
            if only_bans_calls(wanted):
                new.sampling = replace(new.sampling, banned_ids=self._constraints.call_markers)
            else:
                with GRAMMAR_COMPILE_SECONDS.time():
                    plan = await self._constraints.plan(wanted, request.prompt.tenant)
                    new.constraint = await self._constraints.start(
                        plan, new.token_ids, new.num_prompt, new.max_tokens, wanted.budget_field
                    )
                left_out = plan.left_out
        new.constraint = self._constraints.restrictions.add(
            new.constraint, request.sampling, new.token_ids, new.num_prompt
        )
        return Begun(new, left_out)


def _settle(answer: "asyncio.Future[Event]", event: Event) -> None:
    """Take the only event of a prompt that is handed over."""
    if answer.done():
        return
    if isinstance(event, Failed):
        answer.set_exception(event.error)
    else:
        answer.set_result(event)
