"""A block of latent KV, its name, and where else it may be."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NamedBlock:
    """A complete block. `index` is its place in the generation that completed it."""

    block_id: int
    name: bytes
    index: int = 0


@dataclass(frozen=True)
class OfferedBlock:
    """The first `num_tokens` of a block, for another replica."""

    block_id: int
    name: bytes
    num_tokens: int


@dataclass(frozen=True)
class Offer:
    """Blocks that another replica holds for a hand-off; `sources` are the addresses of its shards, in order."""

    id: str
    sources: Sequence[str]
