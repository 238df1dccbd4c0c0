"""Kimi's builtin `$web_search`: declared to the model as a function, and answered honestly when its call is echoed.

Hosted Kimi searches when the client sends a call's arguments back as its result. Nothing is searched here, so the model
reads that search is not available. A client that searched by itself and sends its findings is believed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.request.chat_model import Message, Text

WEB_SEARCH = "$web_search"
NOT_AVAILABLE = "search is not available"
DECLARATION: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": WEB_SEARCH,
        "description": "Search the web.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to search for."}},
            "required": ["query"],
        },
    },
}


def answer_echoes(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages, with another text where a search's arguments were sent back as its result."""
    searches: dict[str, str] = {}
    answered: list[Message] = []
    for message in messages:
        searches |= {call.id: call.arguments.strip() for call in message.tool_calls if call.name == WEB_SEARCH}
        echo = searches.get(message.tool_call_id) if message.role == "tool" else None
        said = "".join(part.text for part in message.content if isinstance(part, Text)).strip()
        answered.append(replace(message, content=(Text(NOT_AVAILABLE),)) if said == echo else message)
    return tuple(answered)
