"""The block pool under every sequence of uses that its owner may make."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.attention.engine.pool import BlockPool


def test_more_than_there_is_gives_nothing_and_takes_nothing():
    pool = BlockPool(3)
    assert pool.allocate(4) is None
    assert pool.num_free == 3
    assert pool.allocate(0) == []


def test_named_blocks_are_remembered_until_their_memory_is_needed():
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    assert [pool.name(block, name) for block, name in zip(blocks, (b"a", b"b"), strict=True)] == [True, True]
    pool.release(blocks)
    assert pool.num_free == 3
    assert pool.hold_prefix([b"a", b"b", b"c"]) == blocks
    pool.release(blocks)
    assert pool.allocate(2) is not None  # the end of the prefix goes first
    assert pool.hold_prefix([b"a", b"b"]) == blocks[:1]


def test_a_name_belongs_to_one_block():
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    assert pool.name(first, b"a")
    assert not pool.name(second, b"a")
    pool.release([first, second])
    assert pool.find_faults([]) == []


def test_releasing_twice_is_our_mistake():
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="twice"):
        pool.release(blocks)


def test_forgetting_keeps_what_is_held():
    pool = BlockPool(2)
    held = pool.allocate(1)
    pool.name(held[0], b"a")
    pool.forget_all()
    assert pool.hold_prefix([b"a"]) == []
    assert pool.find_faults([held]) == []
    pool.release(held)
    assert pool.find_faults([]) == []
    assert pool.num_free == 2


def lose(pool, held):
    pool._blank.pop()


def hold_twice(pool, held):
    held[0].append(held[0][0])


def forget_a_holder(pool, held):
    held.pop()


def free_what_is_held(pool, held):
    pool._blank.append(held[0][0])


def free_twice(pool, held):
    pool._blank.append(pool._blank[-1])


def name_a_blank_one(pool, held):
    pool._name_of[pool._blank[0]] = b"z"
    pool._block_of[b"z"] = pool._blank[0]


def name_one_way(pool, held):
    pool._name_of[held[0][0]] = b"z"


def remember_without_a_name(pool, held):
    pool._remembered[pool._blank.pop()] = None


@pytest.mark.parametrize(
    "harm, found",
    [
        (lose, ["a block is lost"]),
        (hold_twice, ["a generation holds a block twice", "holders and generations disagree"]),
        (forget_a_holder, ["holders and generations disagree", "a block is lost"]),
        (free_what_is_held, ["a block is in two places"]),
        (free_twice, ["a block is blank twice"]),
        (name_a_blank_one, ["a blank block has a name"]),
        (name_one_way, ["names and blocks disagree"]),
        (remember_without_a_name, ["a block without a name is remembered"]),
    ],
)
def test_every_fault_is_found(harm, found):
    pool = BlockPool(4)
    held = [pool.allocate(1)]
    assert pool.find_faults(held) == []
    harm(pool, held)
    assert pool.find_faults(held) == found


class PoolMachine(RuleBasedStateMachine):
    """Generations come, share, name, grow and go in any order; nothing is at fault after each."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(7)
        self.held: list[list[int]] = []
        self.unnamed: set[int] = set()

    @rule(count=st.integers(0, 8))
    def allocate(self, count):
        free = self.pool.num_free
        blocks = self.pool.allocate(count)
        assert (blocks is None) == (count > free)
        if blocks is not None:
            assert len(blocks) == count
            self.held.append(blocks)
            self.unnamed |= set(blocks)

    @rule(names=st.lists(st.sampled_from([b"a", b"b", b"c"]), unique=True))
    def share(self, names):
        self.held.append(self.pool.hold_prefix(names))

    @precondition(lambda self: self.unnamed)
    @rule(data=st.data(), name=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def name(self, data, name):
        block = data.draw(st.sampled_from(sorted(self.unnamed)))
        if self.pool.name(block, name):
            self.unnamed.remove(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(blocks)
        self.unnamed -= set(blocks)

    @rule()
    def forget(self):
        named = {block for blocks in self.held for block in blocks} - self.unnamed
        self.pool.forget_all()
        self.unnamed |= named

    @invariant()
    def consistent(self):
        assert self.pool.find_faults(self.held) == []


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
