"""A block of latent KV and its name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NamedBlock:
    """A block that became complete, to be published."""

    block_id: int
    name: bytes
