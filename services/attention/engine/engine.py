"""The engine: one thread that plans steps, runs them and emits their tokens."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import uvloop

from services.attention.constraint.workers import Rules
from services.attention.engine.fetcher import Fetched, Fetcher
from services.attention.engine.forward import Forward
from services.attention.engine.generation import Failed, Generation, HandedOver, Phase, Tokens
from services.attention.engine.load import Load, load_of
from services.attention.engine.media import MediaSource
from services.attention.engine.publisher import Published, Publisher
from services.attention.engine.roster import Roster
from services.attention.engine.spans import StepSpans
from services.attention.engine.step_metrics import count_step, show_roster
from services.attention.engine.turns import Chunk
from services.attention.layers.local import LayerShard
from services.attention.metrics import (
    BLOCK_FAULTS,
    FINISHED,
    HANDOFF_SECONDS,
    PREFILL_SECONDS,
    PREFIX_TOKENS,
    QUEUE_SECONDS,
)
from services.attention.sampling.on_host import SampledToken
from services.runtime.errors import MoonshardError, Unavailable

log = logging.getLogger(__name__)

SHARD_PAUSE_S = 0.02
CHECK_EVERY_S = 10.0  # at most so often an idle engine looks for faults in its bookkeeping

StoreResult = Fetched | Published
"""What the store's part of a generation gives to the engine."""


class Engine:
    """Owns the roster, the block pool and every generation. Other threads reach it by `submit`, `cancel` and `drain`.

    The thread has an event loop of its own. A step gives way only while it waits for experts or for another shard; what
    arrives meanwhile is queued and done between steps, so nothing changes under a step.
    """

    def __init__(
        self,
        role: str,
        forward: Forward,
        shards: Sequence[LayerShard],
        roster: Roster,
        step_tokens: int,
        media: MediaSource | None,
        spans: StepSpans | None = None,
    ) -> None:
        self._role = role
        self._forward = forward
        self._shards = shards
        self._roster = roster
        self._publisher = Publisher(shards)
        self._rules = Rules()
        self._fetcher = Fetcher(shards, roster.block_tokens, media)
        self._step_tokens = step_tokens
        self._spans = spans
        self._commands: deque[Callable[[], None]] = deque()
        self._tasks: dict[Generation, asyncio.Task[StoreResult]] = {}  # the store reads or writes their blocks now
        self._checked_s = 0.0
        self._step = 0
        self._stopping = False
        self._loop = uvloop.new_event_loop()
        self._wake = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.load = Load(num_free_blocks=roster.pool.num_free)

    def start(self) -> None:
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Future[None]":
        """Run a coroutine on the engine's loop; for opening connections that belong to it."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def submit(self, generation: Generation) -> None:
        """Queue a generation; everything about it, refusal included, reaches its sink."""
        self._post(lambda: self._submit(generation))

    def cancel(self, generation: Generation) -> None:
        """End a generation without a further event; its blocks are free before the next step."""
        self._post(lambda: self._cancel(generation))

    def drain(self) -> None:
        """Give every stream back to its caller, who continues it on another replica; finish the prompts."""
        self._post(self._drain)

    def stop(self, timeout_s: float) -> None:
        """End the thread after the current step."""
        self._post(self._set_stopping)
        self._thread.join(timeout_s)

    def find_faults(self) -> list[str]:
        """Return where the block pool and the generations disagree, a sentence each. Not for the engine's thread."""
        return asyncio.run_coroutine_threadsafe(self._find_faults(), self._loop).result(timeout=30)

    async def _find_faults(self) -> list[str]:
        return self._roster.find_faults()

    def _post(self, command: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(self._enqueue, command)

    def _enqueue(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _drain(self) -> None:
        streams = [generation for generation in self._roster.everyone() if not generation.hand_over]
        self._fail(streams, Unavailable("this replica is shutting down"))

    def _set_stopping(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with torch.inference_mode():
            self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        while not self._stopping:
            plan: list[Chunk] = []
            try:
                self._between_steps()
                self._report()
                if not all(shard.is_connected for shard in self._shards):
                    await asyncio.sleep(SHARD_PAUSE_S)
                    continue
                plan = self._roster.plan(self._step_tokens)
                if plan:
                    await self._run_step(plan)
                    await asyncio.sleep(0)  # lets what arrived during a step without a wait come in
                elif not (self._commands or self._stopping):
                    self._check_if_idle()
                    self._wake.clear()
                    await self._wake.wait()
            except MoonshardError as error:
                log.warning("a step failed: %s", error)
                self._fail([chunk.generation for chunk in plan], error)
            except Exception:
                log.exception("a step failed")
                self._fail([chunk.generation for chunk in plan], MoonshardError("internal error in a step"))

    def _check_if_idle(self) -> None:
        """Log and count faults of the bookkeeping. It goes on with them: a lost block costs memory, never an answer."""
        now_s = time.monotonic()
        if not self._roster.is_empty or now_s - self._checked_s < CHECK_EVERY_S:
            return
        self._checked_s = now_s
        for fault in self._roster.find_faults():
            log.error("the block pool is at fault: %s", fault)
            BLOCK_FAULTS.inc()

    def _between_steps(self) -> None:
        while self._commands:
            self._commands.popleft()()
        losses = [shard.take_loss() for shard in self._shards]
        if any(losses):
            self._roster.pool.forget_all()
            computed = [g for g in self._roster.everyone() if g.phase is not Phase.WAITING]
            self._fail(computed, Unavailable("a shard of this replica was lost"))
        for generation in self._roster.admit():
            self._spawn(generation, self._fetch(generation))

    async def _run_step(self, plan: Sequence[Chunk]) -> None:
        started = time.perf_counter()
        self._step += 1
        sampling = [chunk for chunk in plan if chunk.is_last]
        generations = [chunk.generation for chunk in sampling]
        rules = self._rules.begin([one.constraint for one in generations])
        with self._spans.step(self._step, plan) if self._spans is not None else nullcontext():
            logits = await self._forward.run(self._step, plan)
        params, histories = [one.sampling for one in generations], [one.history for one in generations]
        positions = [len(one.token_ids) for one in generations]
        sampled = await self._rules.sample(logits, params, positions, histories, await self._rules.finish(rules))
        for chunk in plan:
            self._publisher.publish(chunk.generation, self._roster.advance(chunk))
        for generation, choice in zip(generations, sampled, strict=True):
            if isinstance(choice, MoonshardError):
                self._fail([generation], choice)
            else:
                self._emit(generation, choice)
        count_step(self._role, plan, len(sampling), time.perf_counter() - started)

    def _emit(self, generation: Generation, choice: SampledToken) -> None:
        finish_reason = generation.append(choice.token_id)
        milestones = generation.milestones
        is_first = not milestones.first_token_s
        if is_first:
            milestones.first_token_s = time.monotonic()
            PREFILL_SECONDS.labels(self._role).observe(milestones.first_token_s - milestones.started_s)
        if generation.hand_over:
            self._roster.leave(generation)
            generation.first, generation.finish_reason = choice, finish_reason
            self._spawn(generation, self._publish_rest(generation))
            return
        if finish_reason is not None:
            self._remove(generation, finish_reason.name.lower())
        first = milestones if is_first else None
        generation.sink(Tokens((choice,), finish_reason, generation.num_cached or 0, first))

    async def _fetch(self, generation: Generation) -> Fetched:
        """Look in the store for what this replica's memory does not have."""
        milestones = generation.milestones
        if not milestones.admitted_s:
            milestones.admitted_s = time.monotonic()
            QUEUE_SECONDS.labels(self._role).observe(milestones.admitted_s - milestones.arrived_s)
        with HANDOFF_SECONDS.labels("fetched").time():
            return await self._fetcher.fetch(generation)

    def _start(self, generation: Generation, fetched: Fetched) -> None:
        comes_back = generation.num_cached is not None
        num_in_memory = min(generation.num_computed, generation.num_prompt)
        num_cached = self._roster.start(generation, fetched.num_blocks, fetched.tail)
        generation.features = fetched.features
        generation.milestones.started_s = generation.milestones.started_s or time.monotonic()
        if not comes_back:
            PREFIX_TOKENS.labels(self._role, "memory").inc(num_in_memory)
            PREFIX_TOKENS.labels(self._role, "store").inc(num_cached - num_in_memory)
            PREFIX_TOKENS.labels(self._role, "computed").inc(generation.num_prompt - num_cached)

    async def _publish_rest(self, generation: Generation) -> Published:
        with HANDOFF_SECONDS.labels("published").time():
            published = await self._publisher.publish_rest(generation, self._roster.block_tokens)
        generation.milestones.published_s = time.monotonic()
        return published

    def _hand_over(self, generation: Generation, published: Published) -> None:
        """Tell the caller where to go on."""
        assert generation.first is not None
        event = HandedOver(
            choice=generation.first,
            finish_reason=generation.finish_reason,
            num_cached=generation.num_cached or 0,
            block_names=published.block_names,
            tail_name=published.tail_name,
            num_tokens=generation.num_computed,
            milestones=generation.milestones,
        )
        self._remove(generation, "handed_over")
        generation.sink(event)

    def _submit(self, generation: Generation) -> None:
        try:
            self._roster.submit(generation)
        except MoonshardError as error:
            FINISHED.labels("refused").inc()
            generation.sink(Failed(error))

    def _cancel(self, generation: Generation) -> None:
        if generation in self._tasks:
            self._roster.abandon(generation)
        else:
            self._remove(generation, "cancelled")

    def _fail(self, generations: Sequence[Generation], error: MoonshardError) -> None:
        for generation in generations:
            if generation.phase is not Phase.ABANDONED:
                self._cancel(generation)
                generation.sink(Failed(error))

    def _remove(self, generation: Generation, reason: str) -> None:
        self._publisher.forget(generation)
        if self._roster.remove(generation):
            FINISHED.labels(reason).inc()

    def _spawn(self, generation: Generation, work: Coroutine[Any, Any, StoreResult]) -> None:
        """Let the store read or write a generation's blocks beside the steps; they stay held until that is over."""
        task = self._loop.create_task(work)
        self._tasks[generation] = task
        # It is settled as a command, since a step may be waiting for its experts just now.
        task.add_done_callback(lambda _: self._enqueue(lambda: self._settle(generation)))

    def _settle(self, generation: Generation) -> None:
        task = self._tasks.pop(generation)
        error = task.exception()
        if generation.phase is Phase.ABANDONED:
            self._remove(generation, "cancelled")
        elif isinstance(error, MoonshardError):
            self._fail([generation], error)
        elif error is not None:
            log.error("the store's part of a request failed", exc_info=error)
            self._fail([generation], MoonshardError("internal error between steps"))
        else:
            self._go_on(generation, task.result())

    def _go_on(self, generation: Generation, result: StoreResult) -> None:
        match result:
            case Fetched():
                self._start(generation, result)
            case Published():
                self._hand_over(generation, result)

    def _report(self) -> None:
        show_roster(self._roster)
        self.load = load_of(self._roster)
