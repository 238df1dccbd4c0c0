"""The bound on one conversation: one that cannot fit into the context is refused before it is rendered."""

from typing import Final

from protos.tokenizer_pb2 import RenderRequest
from services.runtime.errors import RequestTooLarge

# The template's own tokens: role marker, role, middle marker and end; begin, id, arguments (marker and text) and end.
MESSAGE_TOKENS: Final = 4
CALL_TOKENS: Final = 5


def check_conversation(request: RenderRequest, context_tokens: int) -> None:
    """Raise RequestTooLarge where messages, calls and parts alone take more than the context.

    Tiny messages cost a hundred times their bytes in memory, so their number has to be bounded and not their size.
    """
    num_messages = len(request.messages)
    _check(f"{num_messages} messages", MESSAGE_TOKENS * num_messages, context_tokens)
    num_calls = sum(len(message.tool_calls) for message in request.messages)
    num_tokens = MESSAGE_TOKENS * num_messages + CALL_TOKENS * num_calls
    _check(f"{num_messages} messages with {num_calls} tool calls", num_tokens, context_tokens)
    # An empty part takes no token, but a list of them is no conversation.
    num_parts = sum(len(message.content) for message in request.messages)
    if num_parts > context_tokens:
        raise RequestTooLarge(f"messages: {num_parts} content parts, at most {context_tokens}", field="messages")


def _check(what: str, num_tokens: int, context_tokens: int) -> None:
    if num_tokens > context_tokens:
        raise RequestTooLarge(
            f"messages: {what} take at least {num_tokens} tokens, this model's maximum context length is "
            f"{context_tokens} tokens",
            field="messages",
        )
