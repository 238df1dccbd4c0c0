"""Our own field of an answer on every dialect: keywords of the request's schemas that nothing enforced."""

from typing import NotRequired

from typing_extensions import TypedDict

from gateway.request.answer_model import Usage


class SchemaNotes(TypedDict):
    """A sentence for each keyword."""

    schema_left_out: list[str]


class Noted(TypedDict):
    """An answer with our own field, where there is something to say."""

    moonshard: NotRequired[SchemaNotes]


NO_NOTES: Noted = {}


def notes_of(usage: Usage) -> Noted:
    """`moonshard.schema_left_out`, a sentence for each keyword; empty if all were enforced."""
    return {"moonshard": {"schema_left_out": usage.schema_left_out}} if usage.schema_left_out else {}
