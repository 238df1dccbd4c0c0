"""Reasoning that a client keeps for us without showing it, so that the next turn of a tool loop still has it.

It is packed, not encrypted: it is the client's own conversation, which it could also send as plain reasoning.
"""

import base64
import binascii
import secrets

MARK = "moonshard1."
SIGNATURE_BYTES = 32


def seal(text: str) -> str:
    """Return the text as something opaque."""
    return MARK + base64.b64encode(text.encode()).decode()


def unseal(sealed: str | None) -> str | None:
    """Return the text again; None if another server made it, or it was changed."""
    if sealed is None or not sealed.startswith(MARK):
        return None
    try:
        return base64.b64decode(sealed.removeprefix(MARK), validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def signature() -> str:
    """Something opaque that holds nothing."""
    return base64.b64encode(secrets.token_bytes(SIGNATURE_BYTES)).decode()
