"""Names of latent KV blocks: equal names mean equal bytes, so only blocks of one layout share names."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

NAME_BYTES = 32


def layout_fingerprint(
    *, checkpoint_digest: bytes, layers: range, dtype: str, block_tokens: int, latent_dim: int, latent_norm_eps: float
) -> bytes:
    """Return a digest of everything that decides the bytes of a block; equal exactly where blocks may be exchanged."""
    layout = (
        "moonshard latent KV 3",  # raised whenever the meaning of the bytes changes
        "rope interleaved pairs, latent first",
        checkpoint_digest.hex(),
        f"layers {layers.start}..{layers.stop}",
        f"{dtype} {block_tokens} x {latent_dim}",
        f"eps {latent_norm_eps!r}",
    )
    return hashlib.blake2b("\n".join(layout).encode(), digest_size=NAME_BYTES).digest()


def block_hash(parent: bytes, token_ids: Sequence[int], media: bytes = b"", form: bytes = b"") -> bytes:
    """Name of the block of `token_ids` that follows the blocks up to `parent`.

    media  digests and places of the media in this block: equal placeholder tokens stand for different pictures
    form   where generated tokens begin in this block; empty for a block of prompt tokens alone
    """
    digest = hashlib.blake2b(parent, digest_size=NAME_BYTES)
    digest.update(struct.pack(f"<{len(token_ids)}I", *token_ids))
    digest.update(media)
    digest.update(form)
    return digest.digest()


@dataclass(frozen=True)
class MediaMark:
    """The place of one medium's features among the tokens."""

    offset: int
    num_tokens: int
    digest: bytes


@dataclass
class BlockNames:
    """The chain of names of one token sequence, made on demand.

    Prompt tokens and generated tokens are computed in two forms that round differently, so the name of a block says
    which of its tokens were generated: equal names mean equal bits.

    media       in the order of their offsets
    num_prompt  tokens of the prompt; later ones are generated. None: all tokens are a prompt
    """

    root: bytes
    block_tokens: int
    salt: str = ""
    media: Sequence[MediaMark] = ()
    num_prompt: int | None = None
    _names: list[bytes] = field(default_factory=list)

    @property
    def media_end(self) -> int:
        """The place after the last token of any medium."""
        return self.media[-1].offset + self.media[-1].num_tokens if self.media else 0

    def between(self, first: int, last: int, token_ids: Sequence[int]) -> list[bytes]:
        """Return the names of the blocks [first, last) of `token_ids`, which must fill them."""
        assert last * self.block_tokens <= len(token_ids)
        while len(self._names) < last:
            start = len(self._names) * self.block_tokens
            parent = self._names[-1] if self._names else block_hash(self.root, (), self.salt.encode())
            tokens = token_ids[start : start + self.block_tokens]
            self._names.append(block_hash(parent, tokens, self._media_from(start), self._form_from(start)))
        return self._names[first:last]

    def upto(self, num_blocks: int, token_ids: Sequence[int]) -> list[bytes]:
        """Return the names of the first `num_blocks` blocks of `token_ids`, which must fill them."""
        return self.between(0, num_blocks, token_ids)

    def _media_from(self, start: int) -> bytes:
        end = start + self.block_tokens
        return b"".join(
            struct.pack("<q", mark.offset - start) + mark.digest
            for mark in self.media
            if mark.offset < end and start < mark.offset + mark.num_tokens
        )

    def _form_from(self, start: int) -> bytes:
        if self.num_prompt is None or self.num_prompt >= start + self.block_tokens:
            return b""
        # Four bytes, where media come in forties: the two cannot be confused.
        return struct.pack("<I", max(0, self.num_prompt - start))
