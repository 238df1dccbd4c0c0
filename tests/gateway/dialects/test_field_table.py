"""The table of fields in the README of the dialects is what the code does."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.dialects import field_rules
from gateway.dialects.chat import field_rules as chat
from gateway.dialects.chat.schema import ChatCompletionRequest
from gateway.dialects.completions import field_rules as completions
from gateway.dialects.completions.schema import CompletionRequest
from gateway.dialects.messages import field_rules as messages
from gateway.dialects.messages.schema import MessagesRequest
from gateway.dialects.responses import field_rules as responses
from gateway.dialects.responses.schema import ResponsesRequest

README = Path(__file__).resolve().parents[3] / "gateway/dialects/README.md"
DIALECTS = [
    ("chat", ChatCompletionRequest, chat.RULES),
    ("completions", CompletionRequest, completions.RULES),
    ("messages", MessagesRequest, messages.RULES),
    ("responses", ResponsesRequest, responses.RULES),
]


def row(dialect: str, outcome: str, names: Iterable[str]) -> str:
    return f"| {dialect} | {outcome} | {' '.join(f'`{name}`' for name in sorted(set(names)))} |"


def field_table() -> Iterator[str]:
    """The rows: fields that chat and plain completions have in common stand once."""
    both = {"chat", "completions"}
    common = set(ChatCompletionRequest.model_fields) & set(CompletionRequest.model_fields)
    yield row("chat, completions", "served", common)
    yield row("chat, completions", "refused", field_rules.REFUSED)
    yield row("chat, completions", "warning", field_rules.NO_EFFECT - {"add_special_tokens"})
    for name, schema, rules in DIALECTS:
        served = set(schema.model_fields) - (common if name in both else set())
        refused = set(rules.refused) - (set(field_rules.REFUSED) if name in both else set())
        warned = set(rules.no_effect) - (field_rules.NO_EFFECT if name in both else frozenset())
        yield row(name, "served", served)
        yield row(name, "refused", refused)
        if warned:
            yield row(name, "warning", warned)


def test_the_table_is_what_the_code_does():
    lines = README.read_text().splitlines()
    found = [line for line in lines if line.startswith(tuple(f"| {name}" for name, _, _ in DIALECTS))]
    assert found == list(field_table())


if __name__ == "__main__":
    print("\n".join(field_table()))
