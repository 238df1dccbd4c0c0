"""Names of media features in the store, as the vision service writes and engines read them."""

from typing import Final

DIGEST_BYTES: Final = 32


def media_key(model: str, digest: bytes) -> str:
    """Name of the features of one image or video chunk; `model` is what `model_name` returns."""
    return f"media/{model}/{digest.hex()}"


def model_name(checkpoint_digest: bytes) -> str:
    """A prefix that separates the features of one checkpoint from those of others in the same store."""
    return checkpoint_digest[:16].hex()
