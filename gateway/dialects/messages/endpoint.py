"""POST /v1/messages and POST /v1/messages/count_tokens, also under /anthropic."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.context import Gateway, call_context, gateway_of
from gateway.dialects.messages.answer import BlockWriter, whole_message
from gateway.dialects.messages.request import AskedMessage, parse_count, parse_messages
from gateway.dialects.messages.schema import CountTokensRequest, MessagesRequest
from gateway.dialects.respond import deliver
from gateway.http.openapi import json_body
from gateway.http.routes import ApiRoute, json_response
from gateway.http.sse import until_gone
from gateway.request.active_request import ActiveRequest
from gateway.request.chat_model import Event, assemble


async def messages(request: Request) -> Response:
    """Answer a conversation: one message, or with `stream` server-sent events that end with `message_stop`."""
    gateway = gateway_of(request)
    parse = partial(parse_messages, default_thinking=_thinks_by_default(gateway))
    asked = await gateway.bodies.read_json(request, parse)
    gateway.models.check(asked.model)
    return await deliver(request, asked.request, MessageAnswerer(asked), stream=asked.stream)


async def count_tokens(request: Request) -> Response:
    """Count the `input_tokens`, cached or not, that the same request to /v1/messages would have."""
    gateway = gateway_of(request)
    parse = partial(parse_count, default_thinking=_thinks_by_default(gateway))
    model, conversation = await gateway.bodies.read_json(request, parse)
    gateway.models.check(model)
    counting = gateway.pipeline.count(conversation, call_context(request))
    return json_response({"input_tokens": await until_gone(counting, request.receive)})


def _thinks_by_default(gateway: Gateway) -> bool:
    return gateway.settings.anthropic_default_thinking == "on"


class MessageAnswerer:
    """Shows a run as a message."""

    def __init__(self, asked: AskedMessage) -> None:
        self._asked = asked

    def whole(self, events: Sequence[Event], run: ActiveRequest) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        (choice,) = assemble(events, run.num_choices)
        return whole_message(self._asked.model, choice, run.usage, show_thinking=self._asked.show_thinking)

    def writer(self, run: ActiveRequest) -> BlockWriter:
        """The writer of one that is."""
        return BlockWriter(self._asked.model, run.usage, show_thinking=self._asked.show_thinking)


ROUTES = tuple(
    ApiRoute("POST", f"{prefix}{path}", endpoint, body=json_body(schema))
    for prefix in ("", "/anthropic")
    for path, endpoint, schema in (
        ("/v1/messages", messages, MessagesRequest),
        ("/v1/messages/count_tokens", count_tokens, CountTokensRequest),
    )
)
