"""The engine: one thread that plans steps, runs them and emits their tokens."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import uvloop

from services.attention.constraint.workers import Rules
from services.attention.engine.commands import Cancel, Command, Drain, Release, Settle, Stop, Submit
from services.attention.engine.drawing import Drawn, draw_tokens
from services.attention.engine.fetcher import Fetcher
from services.attention.engine.forward import Forward
from services.attention.engine.generation import FinishReason, FirstToken, Generation, Phase, Tokens
from services.attention.engine.lives import Lives
from services.attention.engine.load import Load, load_of
from services.attention.engine.publisher import Publisher
from services.attention.engine.roster import Roster
from services.attention.engine.spans import StepSpans
from services.attention.engine.speculation import Speculation
from services.attention.engine.step_metrics import count_step, show_roster
from services.attention.engine.turns import Chunk
from services.attention.layers.shard import LayerShard
from services.attention.metrics import BLOCK_FAULTS, PREFILL_SECONDS
from services.attention.sampling.on_host import SampledToken
from services.runtime.errors import MoonshardError, Unavailable

log = logging.getLogger(__name__)

SHARD_PAUSE_S = 0.02
CHECK_EVERY_S = 10.0  # at most so often an idle engine looks for faults in its bookkeeping


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
        fetcher: Fetcher,
        publisher: Publisher,
        hold_s: float,
        speculation: Speculation,
        spans: StepSpans | None = None,
    ) -> None:
        self._role = role
        self._forward = forward
        self._shards = shards
        self._roster = roster
        self._rules = Rules()
        self._step_tokens = step_tokens
        self._speculation = speculation
        self._spans = spans
        self._commands: deque[Command] = deque()
        self._checked_s = 0.0
        self._step = 0
        self._stopping = False
        self._loop = uvloop.new_event_loop()
        self._wake = asyncio.Event()
        self._lives = Lives(role, roster, fetcher, publisher, hold_s, self._loop, self._enqueue)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.load = Load(num_free_blocks=roster.pool.num_free)

    def start(self) -> None:
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Future[None]":
        """Run a coroutine on the engine's loop; for opening connections that belong to it."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def submit(self, generation: Generation) -> None:
        """Queue a generation; everything about it, refusal included, reaches its sink."""
        self._post(Submit(generation))

    def cancel(self, generation: Generation) -> None:
        """End a generation without a further event; its blocks are free before the next step."""
        self._post(Cancel(generation))

    def release(self, offer: str) -> None:
        """Free the blocks of an offer, which another replica has taken."""
        self._post(Release(offer))

    def drain(self) -> None:
        """Give every stream back to its caller, who continues it on another replica; finish the prompts."""
        self._post(Drain())

    def stop(self, timeout_s: float) -> None:
        """End the thread after the current step."""
        self._post(Stop())
        self._thread.join(timeout_s)

    def find_faults(self) -> list[str]:
        """Return where the block pool and the generations disagree, a sentence each. Not for the engine's thread."""
        return asyncio.run_coroutine_threadsafe(self._find_faults(), self._loop).result(timeout=30)

    async def _find_faults(self) -> list[str]:
        return self._roster.find_faults()

    def _post(self, command: Command) -> None:
        self._loop.call_soon_threadsafe(self._enqueue, command)

    def _enqueue(self, command: Command) -> None:
        self._commands.append(command)
        self._wake.set()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Submit(generation):
                self._lives.submit(generation)
            case Cancel(generation):
                self._lives.cancel(generation)
            case Release(offer):
                self._lives.release(offer)
            case Settle():
                self._lives.settle(command)
            case Drain():
                self._drain()
            case Stop():
                self._stopping = True

    def _drain(self) -> None:
        streams = [generation for generation in self._roster.everyone() if not generation.hand_over]
        self._lives.fail(streams, Unavailable("this replica is shutting down"))

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
                if not self._is_connected:
                    await asyncio.sleep(SHARD_PAUSE_S)
                    continue
                plan = self._roster.plan(self._step_tokens)
                plan = self._speculation.add(plan, self._step_tokens - len(plan))
                if plan:
                    await self._run_step(plan)
                    await asyncio.sleep(0)  # lets what arrived during a step without a wait come in
                elif not (self._commands or self._stopping):
                    self._check_if_idle()
                    self._wake.clear()
                    await self._wake.wait()
            except MoonshardError as error:
                log.warning("a step failed: %s", error)
                self._lives.fail([chunk.generation for chunk in plan], error)
            except Exception:
                log.exception("a step failed")
                self._lives.fail([chunk.generation for chunk in plan], MoonshardError("internal error in a step"))

    @property
    def _is_connected(self) -> bool:
        return all(shard.is_connected for shard in self._shards)

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
            self._carry_out(self._commands.popleft())
        losses = [shard.take_loss() for shard in self._shards]
        if any(losses):
            self._roster.pool.forget_all()
            self._lives.release_all()
            computed = [g for g in self._roster.everyone() if g.phase is not Phase.WAITING]
            self._lives.fail(computed, Unavailable("a shard of this replica was lost"))
        for generation in self._roster.admit() if self._is_connected else ():
            self._lives.fetch(generation)

    async def _run_step(self, plan: Sequence[Chunk]) -> None:
        started = time.perf_counter()
        self._step += 1
        sampling = [chunk for chunk in plan if chunk.is_last]
        rules = self._rules.begin([chunk.generation.constraint for chunk in sampling])
        with self._spans.step(self._step, plan) if self._spans is not None else nullcontext():
            logits = await self._forward.run(self._step, plan)
        for chunk in plan:
            self._lives.publish(chunk.generation, self._roster.advance(chunk))
        num_generated = 0
        for chunk, drawn in zip(sampling, await draw_tokens(self._rules, rules, sampling, logits), strict=True):
            num_generated += len(drawn.choices)
            self._emit(chunk.generation, drawn)
        seconds = time.perf_counter() - started
        self._speculation.learn(plan, num_generated, seconds)
        count_step(self._role, plan, len(sampling), num_generated, seconds)

    def _emit(self, generation: Generation, drawn: Drawn) -> None:
        if len(drawn.choices) > 1:
            accepted = Chunk(generation, len(drawn.choices) - 1)
            self._lives.publish(generation, self._roster.advance(accepted))
        if drawn.choices:
            self._report_tokens(generation, drawn.choices, drawn.finish_reason)
        if drawn.error is not None:
            self._lives.fail([generation], drawn.error)

    def _report_tokens(
        self, generation: Generation, choices: Sequence[SampledToken], finish_reason: FinishReason | None
    ) -> None:
        milestones = generation.milestones
        is_first = not milestones.first_token_s
        if is_first:
            milestones.first_token_s = time.monotonic()
            PREFILL_SECONDS.labels(self._role).observe(milestones.first_token_s - milestones.started_s)
        if generation.hand_over:
            self._lives.hand_over(generation, FirstToken(choices[0], finish_reason))
            return
        if finish_reason is not None:
            self._lives.end(generation, finish_reason.name.lower())
        first = milestones if is_first else None
        scores = generation.prompt_scores.all() if is_first and generation.prompt_scores is not None else ()
        generation.sink(Tokens(choices, finish_reason, generation.num_cached or 0, first, scores))

    def _report(self) -> None:
        show_roster(self._roster)
        self.load = load_of(self._roster)
