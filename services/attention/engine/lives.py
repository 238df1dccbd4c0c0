"""Takes generations through their phases between steps."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from services.attention.engine.commands import Command, Release, Settle, StoreResult
from services.attention.engine.fetcher import Fetched, Fetcher
from services.attention.engine.generation import Failed, FirstToken, Generation, HandedOver, Phase
from services.attention.engine.publisher import Published, Publisher
from services.attention.engine.roster import Roster
from services.attention.layers.blocks import NamedBlock
from services.attention.metrics import FINISHED, HANDOFF_SECONDS, PREFIX_TOKENS, QUEUE_SECONDS
from services.runtime.errors import MoonshardError

log = logging.getLogger(__name__)


class Lives:
    """Moves generations from phase to phase and reports to their callers. Owned by the engine and used on its loop.

    The store works beside the steps. Its results are settled between them, since a step may be waiting for its experts
    when they come.

    hold_s   how long the blocks of a hand-off are held for another replica
    enqueue  queues a command for the engine
    """

    def __init__(
        self,
        role: str,
        roster: Roster,
        fetcher: Fetcher,
        publisher: Publisher,
        hold_s: float,
        loop: asyncio.AbstractEventLoop,
        enqueue: Callable[[Command], None],
    ) -> None:
        self._role = role
        self._roster = roster
        self._fetcher = fetcher
        self._publisher = publisher
        self._hold_s = hold_s
        self._loop = loop
        self._enqueue = enqueue
        self._held: dict[str, Generation] = {}  # by their offers
        self._tasks: dict[Generation, asyncio.Task[StoreResult]] = {}  # the store reads or writes their blocks now

    def submit(self, generation: Generation) -> None:
        """Queue a generation, or refuse it."""
        try:
            self._roster.submit(generation)
        except MoonshardError as error:
            FINISHED.labels("refused").inc()
            generation.sink(Failed(error))

    def fetch(self, generation: Generation) -> None:
        """Let an admitted generation take from the store what this replica's memory does not have, then run."""
        milestones = generation.milestones
        if not milestones.admitted_s:
            milestones.admitted_s = time.monotonic()
            QUEUE_SECONDS.labels(self._role).observe(milestones.admitted_s - milestones.arrived_s)
        self._publisher.begin(generation)
        self._spawn(generation, self._fetcher.fetch(generation), "fetched")

    def publish(self, generation: Generation, blocks: Sequence[NamedBlock]) -> None:
        """Start to publish blocks that a step has completed."""
        self._publisher.publish(generation, blocks)

    def hand_over(self, generation: Generation, first: FirstToken) -> None:
        """Publish what is left of a computed prompt, then say where to go on."""
        self._roster.leave(generation)
        self._spawn(generation, self._publisher.publish_rest(generation, first), "published")

    def release(self, offer: str) -> None:
        """Free the blocks of a hand-off: they were taken, or the hold is over."""
        generation = self._held.pop(offer, None)
        if generation is not None:
            self._publisher.withdraw(offer)
            self._roster.remove(generation)

    def release_all(self) -> None:
        for offer in list(self._held):
            self.release(offer)

    def cancel(self, generation: Generation) -> None:
        """End a generation whose caller has gone, unless it is handed over and kept for another replica."""
        if generation.phase is Phase.HELD:
            return
        if generation in self._tasks:
            self._roster.abandon(generation)
        else:
            self.end(generation, "cancelled")

    def fail(self, generations: Sequence[Generation], error: MoonshardError) -> None:
        """End generations by an error, except those whose caller has gone or has its answer."""
        for generation in generations:
            if generation.phase not in {Phase.ABANDONED, Phase.HELD}:
                self.cancel(generation)
                generation.sink(Failed(error))

    def end(self, generation: Generation, reason: str) -> None:
        """Free the blocks of a generation that the store does not work for."""
        self._publisher.forget(generation)
        if self._roster.remove(generation):
            FINISHED.labels(reason).inc()

    def settle(self, done: Settle) -> None:
        """Go on with a generation after the store's work for it, between two steps."""
        generation = done.generation
        del self._tasks[generation]
        if generation.phase is Phase.ABANDONED:
            if isinstance(done.outcome, Published) and done.outcome.offer:
                self._publisher.withdraw(done.outcome.offer)
            self.end(generation, "cancelled")
            return
        match done.outcome:
            case Fetched() as fetched:
                self._start(generation, fetched)
            case Published() as published:
                self._handed_over(generation, published)
            case MoonshardError() as error:
                self.fail([generation], error)
            case error:
                log.error("the store's part of a request failed", exc_info=error)
                self.fail([generation], MoonshardError("internal error between steps"))

    def _spawn(self, generation: Generation, work: Coroutine[Any, Any, StoreResult], direction: str) -> None:
        started_s = time.monotonic()
        task = self._loop.create_task(work)
        self._tasks[generation] = task

        def done(_: object) -> None:
            HANDOFF_SECONDS.labels(direction).observe(time.monotonic() - started_s)
            self._enqueue(Settle(generation, task.exception() or task.result()))

        task.add_done_callback(done)

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

    def _handed_over(self, generation: Generation, published: Published) -> None:
        generation.milestones.published_s = time.monotonic()
        event = HandedOver(
            first=published.first,
            num_cached=generation.num_cached or 0,
            block_names=published.block_names,
            tail_name=published.tail_name,
            offer=published.offer,
            num_tokens=generation.num_computed,
            milestones=generation.milestones,
        )
        if published.offer:
            self._hold(generation, published.offer)
        else:
            self.end(generation, "handed_over")
        generation.sink(event)

    def _hold(self, generation: Generation, offer: str) -> None:
        FINISHED.labels("handed_over").inc()
        self._publisher.forget(generation)
        self._roster.hold(generation)
        self._held[offer] = generation
        self._loop.call_later(self._hold_s, self._enqueue, Release(offer))
