"""How much latent KV fits into memory: one rule for `moonshard up` and for processes that size themselves."""

from typing import Final

MIN_BLOCKS: Final = 256
# More than four whole contexts in one process bring nothing: prefixes that long are in the store as well.
MOST_CONTEXTS: Final = 4


def fitting_blocks(num_bytes: int, block_bytes: int, context_tokens: int, block_tokens: int) -> int:
    """Return how many blocks of latent KV a process should have.

    num_bytes       of memory that may be spent on them
    block_bytes     of one block in the layers of this process
    context_tokens  the most positions of the model
    """
    most = MOST_CONTEXTS * -(-context_tokens // block_tokens)
    return max(MIN_BLOCKS, min(num_bytes // block_bytes, most))
