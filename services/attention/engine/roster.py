"""Who waits, who runs, and which blocks each has: the bookkeeping and the policy of the engine."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.attention.engine.generation import Generation
from services.attention.engine.pool import BlockPool
from services.attention.layers.blocks import NamedBlock
from services.runtime.errors import Overloaded


@dataclass(frozen=True)
class Chunk:
    """The next `num_tokens` uncomputed tokens of a generation, as part of a step."""

    generation: Generation
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """The logits after this chunk give a new token."""
        return self.num_tokens == self.generation.num_remaining


def plan_step(running: Sequence[Generation], step_tokens: int) -> list[Chunk]:
    """What goes into the next step: every running decode, then prompt chunks, first come first served.

    Decodes go first so that a long prompt never stops the streams beside it; prompts share what is left of step_tokens.
    """
    plan = [Chunk(generation, 1) for generation in running if generation.num_remaining == 1]
    budget = step_tokens - len(plan)
    for generation in running:
        if budget <= 0:
            break
        if generation.num_remaining > 1:
            plan.append(Chunk(generation, min(generation.num_remaining, budget)))
            budget -= plan[-1].num_tokens
    return plan


@dataclass
class Roster:
    """The generations of a replica. Owned by the engine thread; decides, but computes and sends nothing."""

    pool: BlockPool
    block_tokens: int
    max_running: int
    max_waiting: int
    waiting: list[Generation] = field(default_factory=list)  # by arrival
    fetching: list[Generation] = field(default_factory=list)
    running: list[Generation] = field(default_factory=list)  # by arrival
    leaving: list[Generation] = field(default_factory=list)  # done, but their blocks are still being published
    _arrivals: int = 0
    _num_preempted: int = 0

    def submit(self, generation: Generation) -> None:
        """Queues a generation, or Overloaded if the queue is full."""
        if len(self.waiting) >= self.max_waiting:
            raise Overloaded(f"{self.max_waiting} requests are waiting already", retry_after_s=1.0)
        self._arrivals += 1
        generation.arrival = self._arrivals
        self.waiting.append(generation)

    def admit(self) -> list[Generation]:
        """Gives blocks to waiting generations, in order of arrival, as long as there are any; they are now fetching."""
        admitted = []
        while self.waiting and len(self.running) + len(self.fetching) < self.max_running:
            generation = self.waiting[0]
            if not self._give_blocks(generation):
                break
            self.waiting.pop(0)
            self.fetching.append(generation)
            admitted.append(generation)
        return admitted

    def start(self, generation: Generation, num_fetched: int, tail_fetched: bool) -> int:
        """A fetching generation runs, with so many further blocks from the store; returns its cached prompt tokens."""
        self.fetching.remove(generation)
        self._name(generation, generation.num_computed + num_fetched * self.block_tokens)
        if tail_fetched:
            generation.num_computed = generation.tail_tokens
        if generation.num_cached is None:
            generation.num_cached = min(generation.num_computed, generation.num_prompt)
        insort(self.running, generation, key=lambda g: g.arrival)
        return generation.num_cached

    def plan(self, step_tokens: int) -> list[Chunk]:
        """The next step; if blocks are short for it, the youngest generations are sent back to wait."""
        for generation in tuple(self.running):
            while generation in self.running and not self._grow(generation):
                self._preempt(self.running[-1])
        return plan_step(self.running, step_tokens)

    def advance(self, chunk: Chunk) -> list[NamedBlock]:
        """Records that a chunk is computed; returns the blocks that it completed and that are new here."""
        return self._name(chunk.generation, chunk.generation.num_computed + chunk.num_tokens)

    def leave(self, generation: Generation) -> None:
        """A running generation computes no more but keeps its blocks until `remove`."""
        self.running.remove(generation)
        self.leaving.append(generation)

    def remove(self, generation: Generation) -> bool:
        """Ends a generation wherever it is and frees its blocks; False if it is not here."""
        for group in (self.running, self.waiting, self.fetching, self.leaving):
            if generation in group:
                group.remove(generation)
                self._take_blocks(generation)
                return True
        return False

    def take_num_preempted(self) -> int:
        """Generations sent back to wait since the last call."""
        count, self._num_preempted = self._num_preempted, 0
        return count

    def everyone(self) -> list[Generation]:
        return [*self.running, *self.fetching, *self.leaving, *self.waiting]

    def check(self) -> None:
        """Asserts that blocks and generations agree."""
        self.pool.check([generation.block_ids for generation in self.everyone()])
        for generation in self.running:
            assert generation.num_remaining >= 1
            assert generation.num_computed <= len(generation.block_ids) * self.block_tokens

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def _give_blocks(self, generation: Generation) -> bool:
        # The last known token is always computed here: its logits are needed, and they are not stored.
        sharable = (len(generation.token_ids) - 1) // self.block_tokens
        shared = self.pool.hold_prefix(generation.names.upto(sharable, generation.token_ids))
        missing = self._blocks_for(len(generation.token_ids)) - len(shared)
        # Every running generation can take one more block before anyone must be sent back.
        spare = len(self.running) + len(self.fetching)
        fresh = self.pool.allocate(missing) if missing + spare <= self.pool.num_free else None
        if fresh is None:
            self.pool.release(shared)
            return False
        generation.block_ids = shared + fresh
        generation.num_computed = len(shared) * self.block_tokens
        return True

    def _take_blocks(self, generation: Generation) -> None:
        self.pool.release(generation.block_ids)
        generation.block_ids = []
        generation.num_computed = 0
        generation.features = {}

    def _grow(self, generation: Generation) -> bool:
        missing = self._blocks_for(len(generation.token_ids)) - len(generation.block_ids)
        blocks = self.pool.allocate(missing)
        if blocks is None:
            return False
        generation.block_ids += blocks
        return True

    def _preempt(self, generation: Generation) -> None:
        """Sends a generation back to wait. Its complete blocks are published, so it comes back by fetching them."""
        self.running.remove(generation)
        self._take_blocks(generation)
        generation.tail_name = ""
        insort(self.waiting, generation, key=lambda g: g.arrival)
        self._num_preempted += 1

    def _name(self, generation: Generation, num_computed: int) -> list[NamedBlock]:
        first, last = generation.num_computed // self.block_tokens, num_computed // self.block_tokens
        generation.num_computed = num_computed
        if num_computed >= generation.names.media_end:
            generation.features = {}
        names = generation.names.upto(last, generation.token_ids)
        return [
            NamedBlock(generation.block_ids[index], names[index])
            for index in range(first, last)
            if self.pool.name(generation.block_ids[index], names[index])
        ]
