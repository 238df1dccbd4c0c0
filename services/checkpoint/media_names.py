"""Names of media features in the store, shared by the vision service and the engines."""

from typing import Final

DIGEST_BYTES: Final = 32


def media_key(model: str, digest: bytes) -> str:
    """Return the name of the features of one image or video chunk; `model` is from `model_name`."""
    return f"media/{model}/{digest.hex()}"


def model_name(checkpoint_digest: bytes) -> str:
    """Return a prefix that separates the features of different checkpoints in a store."""
    return checkpoint_digest[:16].hex()
