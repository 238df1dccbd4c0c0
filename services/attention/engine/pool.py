"""The block pool: which blocks of latent KV are free, held by generations, or remembered by name."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain


class BlockPool:
    """Hands out block ids and shares complete blocks by name. Owned by the engine thread.

    A complete block has a name, under which later generations find it. A named block that no generation holds is
    remembered: it stays as it is until its memory is needed, least recently used first.
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
        """Return `count` blocks for one new holder, or None if there are fewer; their contents are undefined."""
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
        """Return the blocks of the longest known prefix of `names`, each with one more holder."""
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
        """Remember a complete block; False if another block has the name already."""
        assert self._holders[block] > 0 and block not in self._name_of
        if name in self._block_of:
            return False
        self._name_of[block] = name
        self._block_of[name] = block
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Take one holder from each block."""
        for block in reversed(blocks):  # so that the end of a prefix is forgotten before its beginning
            assert self._holders[block] > 0, f"block {block} is released twice"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._name_of:
                    self._remembered[block] = None
                else:
                    self._blank.append(block)

    def forget_all(self) -> None:
        """Drop every name: the bytes behind them are gone. Held blocks stay held."""
        self._blank += self._remembered
        self._remembered.clear()
        self._name_of.clear()
        self._block_of.clear()

    def find_faults(self, held: Sequence[Sequence[int]]) -> list[str]:
        """Return what is wrong, a sentence each: exactly the blocks in `held`, one list a generation, must be held."""
        holders = [0] * self.num_blocks
        for block in chain.from_iterable(held):
            holders[block] += 1
        in_use = {block for block, count in enumerate(holders) if count}
        blank, remembered, named = set(self._blank), set(self._remembered), set(self._name_of)
        faults = {
            "a generation holds a block twice": any(len(set(blocks)) != len(blocks) for blocks in held),
            "holders and generations disagree": holders != self._holders,
            "a block is blank twice": len(blank) != len(self._blank),
            "a block is in two places": bool(blank & remembered or in_use & (blank | remembered)),
            "a block is lost": in_use | blank | remembered != set(range(self.num_blocks)),
            "names and blocks disagree": {block: name for name, block in self._block_of.items()} != self._name_of,
            "a block without a name is remembered": not remembered <= named,
            "a blank block has a name": bool(blank & named),
        }
        return [fault for fault, found in faults.items() if found]

    def _forget(self, block: int) -> None:
        del self._block_of[self._name_of.pop(block)]
