"""What the engine asks of every shard of its replica."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Protocol, TypeVar, cast

from torch import Tensor

from services.attention.layers.batch import Batch
from services.attention.layers.blocks import NamedBlock, OfferedBlock

T = TypeVar("T")


class LayerShard(Protocol):
    """One shard of the engine's replica, its own included. Used on the engine's loop only.

    Methods that are not coroutines copy what they need before they return, so the blocks may change afterwards.
    """

    async def forward(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        """Run the shard's layers on hidden [tokens, hidden_size] and write the batch's latent KV."""

    def publish(self, blocks: Sequence[NamedBlock]) -> Awaitable[bool]:
        """Store complete blocks."""

    async def publish_missing(self, blocks: Sequence[NamedBlock]) -> bool:
        """Store those blocks that the store has lost; the caller holds them until this is done."""

    def publish_tail(self, tail_name: str, block_id: int, num_tokens: int) -> Awaitable[bool]:
        """Store the first num_tokens of a block under the request's own name."""

    async def fetch(self, blocks: Sequence[NamedBlock]) -> int:
        """Fill blocks from the store; return how many of the leading ones were there."""

    async def fetch_tail(self, tail_name: str, block_id: int, num_tokens: int) -> bool:
        """Fill the beginning of a block from the store."""

    def offer(self, offer: str, blocks: Sequence[OfferedBlock]) -> Awaitable[bool]:
        """Give blocks to another replica until they are withdrawn; the caller keeps them unchanged until then."""

    def withdraw(self, offer: str) -> None:
        """End an offer: what is computed after this may change the blocks."""

    async def fetch_offered(self, source: str, offer: str, blocks: Sequence[OfferedBlock]) -> int:
        """Fill blocks from the shard of another replica; return how many of the leading ones were there."""

    @property
    def is_connected(self) -> bool:
        """Whether it can be used now. Until it can, new generations wait."""

    def take_loss(self) -> bool:
        """Return True once after the shard has lost its latent KV."""


async def all_of(work: Iterable[Awaitable[T]]) -> list[T]:
    """Wait until all have ended; return their results, or raise the first error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[T], results)
