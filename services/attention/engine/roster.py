"""The generations of a replica by phase, and the blocks that each has: the engine's bookkeeping and policy."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.attention.engine.generation import Generation, Phase
from services.attention.engine.pool import BlockPool
from services.attention.engine.turns import Chunk, Turns, plan_step
from services.attention.layers.blocks import NamedBlock
from services.runtime.errors import Overloaded


def _no_generations() -> dict[Phase, list[Generation]]:
    return {phase: [] for phase in Phase if phase is not Phase.OUTSIDE}


@dataclass
class Roster:
    """Owned by the engine thread; decides, but computes and sends nothing."""

    pool: BlockPool
    block_tokens: int
    max_running: int
    max_waiting: int
    _groups: dict[Phase, list[Generation]] = field(default_factory=_no_generations)
    _turns: Turns = field(default_factory=Turns)
    _arrivals: int = 0
    _num_preempted: int = 0

    def of(self, phase: Phase) -> Sequence[Generation]:
        """Return the generations of a phase: by their turn where they wait, else by when they came into it."""
        return self._groups[phase]

    def submit(self, generation: Generation) -> None:
        """Queue a generation; Overloaded if the queue is full."""
        if len(self.of(Phase.WAITING)) >= self.max_waiting:
            raise Overloaded(f"{self.max_waiting} requests are waiting already", retry_after_s=1.0)
        self._arrivals += 1
        generation.arrival = self._arrivals
        self._wait(generation)

    def admit(self) -> list[Generation]:
        """Give blocks to waiting generations, by turn, as long as there are any; they are now fetching."""
        admitted = []
        waiting = self._groups[Phase.WAITING]
        while waiting and len(self.of(Phase.RUNNING)) + len(self.of(Phase.FETCHING)) < self.max_running:
            generation = waiting[0]
            # Later ones may not take the blocks that the first one waits for: it is due before them.
            if not self._give_blocks(generation):
                break
            self._move(generation, Phase.FETCHING)
            admitted.append(generation)
        return admitted

    def start(self, generation: Generation, num_fetched: int, tail_fetched: bool) -> int:
        """Let a fetching generation run, with `num_fetched` more blocks; return its cached prompt tokens."""
        self._move(generation, Phase.RUNNING)
        self._name(generation, generation.num_computed + num_fetched * self.block_tokens)
        if tail_fetched:
            generation.num_computed = generation.tail_tokens
        if generation.num_cached is None:
            generation.num_cached = min(generation.num_computed, generation.num_prompt)
        self._turns.move_up(generation)
        return generation.num_cached

    def plan(self, step_tokens: int) -> list[Chunk]:
        """Return the next step; if blocks are short for it, the youngest generations are sent back to wait."""
        for generation in tuple(self.of(Phase.RUNNING)):
            while generation.phase is Phase.RUNNING and not self._grow(generation):
                self._preempt(max(self.of(Phase.RUNNING), key=lambda g: g.arrival))
        return plan_step(self.of(Phase.RUNNING), step_tokens)

    def advance(self, chunk: Chunk) -> list[NamedBlock]:
        """Record that a chunk is computed; return the blocks that it completed and that are new here."""
        generation = chunk.generation
        named = self._name(generation, generation.num_computed + chunk.num_tokens)
        if generation.weight:
            self._turns.count(generation)
            if not generation.num_remaining:
                self._turns.leave(generation)
        return named

    def leave(self, generation: Generation) -> None:
        """Stop computing a generation; it keeps its blocks until `remove`."""
        self._move(generation, Phase.LEAVING)

    def hold(self, generation: Generation) -> None:
        """Keep the blocks of a generation that is handed over until `remove`, for the replica that goes on."""
        self._move(generation, Phase.HELD)

    def abandon(self, generation: Generation) -> None:
        """Note that the caller has gone; the generation keeps its blocks until `remove`."""
        self._turns.leave(generation)
        self._move(generation, Phase.ABANDONED)

    def remove(self, generation: Generation) -> bool:
        """End a generation wherever it is and free its blocks; False if it is not here."""
        if generation.phase is Phase.OUTSIDE:
            return False
        self._turns.leave(generation)
        self._groups[generation.phase].remove(generation)
        generation.phase = Phase.OUTSIDE
        self._take_blocks(generation)
        return True

    def take_num_preempted(self) -> int:
        """Return how many generations were sent back to wait since the last call."""
        count, self._num_preempted = self._num_preempted, 0
        return count

    def everyone(self) -> list[Generation]:
        return [generation for group in self._groups.values() for generation in group]

    @property
    def is_empty(self) -> bool:
        return not any(self._groups.values())

    def find_faults(self) -> list[str]:
        """Return where blocks and generations disagree, a sentence each; none on a sound replica."""
        faults = self.pool.find_faults([generation.block_ids for generation in self.everyone()])
        for generation in self.of(Phase.RUNNING):
            num_computed, num_blocks = generation.num_computed, len(generation.block_ids)
            if not 0 <= num_computed < len(generation.token_ids):
                faults.append(f"{num_computed} of {len(generation.token_ids)} tokens of a running one are computed")
            if num_computed > num_blocks * self.block_tokens:
                faults.append(f"{num_computed} tokens are computed in {num_blocks} blocks")
        return faults

    def _move(self, generation: Generation, phase: Phase) -> None:
        self._groups[generation.phase].remove(generation)
        generation.phase = phase
        self._groups[phase].append(generation)

    def _wait(self, generation: Generation) -> None:
        self._turns.enter(generation)
        generation.phase = Phase.WAITING
        insort(self._groups[Phase.WAITING], generation, key=lambda g: (g.due, g.arrival))

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def _give_blocks(self, generation: Generation) -> bool:
        # The last known token is always computed here: its logits are needed, and they are not stored.
        sharable = (len(generation.token_ids) - 1) // self.block_tokens
        shared = self.pool.hold_prefix(generation.names.upto(sharable, generation.token_ids))
        missing = self._blocks_for(len(generation.token_ids)) - len(shared)
        # Every running generation can take one more block before one must be sent back.
        spare = len(self.of(Phase.RUNNING)) + len(self.of(Phase.FETCHING))
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
        """Send a generation back to wait. Its complete blocks are published, so it comes back by fetching them."""
        self._turns.leave(generation)
        self._groups[Phase.RUNNING].remove(generation)
        self._take_blocks(generation)
        generation.tail_name = ""
        self._wait(generation)
        self._num_preempted += 1

    def _name(self, generation: Generation, num_computed: int) -> list[NamedBlock]:
        first, last = generation.num_computed // self.block_tokens, num_computed // self.block_tokens
        generation.num_computed = num_computed
        if num_computed >= generation.names.media_end:
            generation.features = {}
        names = generation.names.between(first, last, generation.token_ids)
        blocks = zip(generation.block_ids[first:last], names, range(first, last), strict=True)
        return [NamedBlock(*block) for block in blocks if self.pool.name(*block[:2])]
