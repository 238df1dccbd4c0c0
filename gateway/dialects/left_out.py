"""Our own field of an answer on every dialect: keywords of the request's schemas that nothing enforced."""

from typing import Any

from gateway.request.chat_model import Usage


def notes_of(usage: Usage) -> dict[str, Any]:
    """`moonshard.schema_left_out`, a sentence for each keyword; empty if all were enforced."""
    return {"moonshard": {"schema_left_out": usage.schema_left_out}} if usage.schema_left_out else {}
