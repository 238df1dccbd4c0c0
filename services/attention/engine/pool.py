"""The block pool: which blocks of latent KV are free, held by generations, or remembered by name."""

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Hands out block ids and shares complete blocks by name. Owned by the engine thread.

    A block is held by `holders` generations. A complete block has a name, under which later generations find it. When
    nobody holds a named block it stays as it is, remembered, until its memory is needed: least recently used first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks
        self._name_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._remembered: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out, remembered ones included."""
        return len(self._blank) + len(self._remembered)

    @property
    def num_remembered(self) -> int:
        return len(self._remembered)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks for one new holder, or None if there are fewer; their contents are undefined."""
        if count > self.num_free:
            return None
        while len(self._blank) < count:
            block, _ = self._remembered.popitem(last=False)
            self._forget(block)
            self._blank.append(block)
        blocks = [self._blank.pop() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def hold_prefix(self, names: Sequence[bytes]) -> list[int]:
        """The remembered blocks of the longest known prefix of `names`, each with one more holder."""
        blocks = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            self._holders[block] += 1
            self._remembered.pop(block, None)
            blocks.append(block)
        return blocks

    def name(self, block: int, name: bytes) -> bool:
        """Remembers a complete block; False if another block has the name already."""
        assert self._holders[block] > 0 and block not in self._name_of
        if name in self._block_of:
            return False
        self._name_of[block] = name
        self._block_of[name] = block
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Takes one holder from each block."""
        for block in reversed(blocks):  # so that the end of a prefix is forgotten before its beginning
            assert self._holders[block] > 0, f"block {block} is released twice"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._name_of:
                    self._remembered[block] = None
                else:
                    self._blank.append(block)

    def forget_all(self) -> None:
        """Drops every name: the bytes behind them are gone. Held blocks stay held."""
        self._blank += self._remembered
        self._remembered.clear()
        self._name_of.clear()
        self._block_of.clear()

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Asserts that exactly the blocks in `held`, one list per generation, are held and nothing is lost."""
        holders = [0] * self.num_blocks
        for blocks in held:
            assert len(set(blocks)) == len(blocks), f"a generation holds a block twice: {blocks}"
            for block in blocks:
                holders[block] += 1
        assert holders == self._holders, "holders and generations disagree"
        in_use = {block for block, count in enumerate(holders) if count}
        blank, remembered = set(self._blank), set(self._remembered)
        assert len(blank) == len(self._blank), "a block is blank twice"
        assert not (blank & remembered) and not (in_use & (blank | remembered)), "a block is in two places"
        assert in_use | blank | remembered == set(range(self.num_blocks)), "a block is lost"
        assert {self._block_of[name]: name for name in self._block_of} == self._name_of, "names and blocks disagree"
        assert remembered <= set(self._name_of) and not (blank & set(self._name_of)), "a nameless block is remembered"

    def _forget(self, block: int) -> None:
        del self._block_of[self._name_of.pop(block)]
