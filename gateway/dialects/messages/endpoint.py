"""POST /v1/messages and POST /v1/messages/count_tokens, also under /anthropic."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.context import Gateway, call_context, gateway_of
from gateway.dialects.messages.answer import BlockWriter, whole_message
from gateway.dialects.messages.answer_types import AssistantMessage, TokenCount
from gateway.dialects.messages.request import AskedMessage, parse_count, parse_messages
from gateway.dialects.messages.schema import CountTokensRequest, MessagesRequest
from gateway.dialects.respond import deliver
from gateway.http.openapi import json_body
from gateway.http.routes import ApiRoute, json_response
from gateway.http.sse import until_gone
from gateway.request.active_request import ActiveRequest
from gateway.request.answer_model import AnswerEvent, assemble

T_co = TypeVar("T_co", covariant=True)


async def messages(request: Request) -> Response:
    """Answer a conversation: one message, or with `stream` server-sent events that end with `message_stop`."""
    gateway = gateway_of(request)
    asked = await gateway.bodies.read_json(request, _parse(parse_messages, gateway))
    call_context(request).ignored.extend(asked.ignored)
    gateway.models.check(asked.model)
    return await deliver(request, asked.request, MessageAnswerer(asked), stream=asked.stream)


async def count_tokens(request: Request) -> Response:
    """Count the `input_tokens`, cached or not, that the same request to /v1/messages would have."""
    gateway = gateway_of(request)
    asked = await gateway.bodies.read_json(request, _parse(parse_count, gateway))
    call_context(request).ignored.extend(asked.ignored)
    gateway.models.check(asked.model)
    counting = gateway.pipeline.count(asked.conversation, call_context(request))
    count: TokenCount = {"input_tokens": await until_gone(counting, request.receive)}
    return json_response(count)


class _Parse(Protocol[T_co]):
    def __call__(self, body: Mapping[str, Any], *, default_thinking: bool, refuse_unknown: bool) -> T_co: ...


def _parse(parse: _Parse[T_co], gateway: Gateway) -> Callable[[dict[str, Any]], T_co]:
    settings = gateway.settings
    thinks, refuses = settings.anthropic_default_thinking == "on", settings.unknown_fields == "refuse"
    return partial(parse, default_thinking=thinks, refuse_unknown=refuses)


class MessageAnswerer:
    """Shows an answer as a message."""

    def __init__(self, asked: AskedMessage) -> None:
        self._asked = asked

    def whole(self, events: Sequence[AnswerEvent], active: ActiveRequest) -> AssistantMessage:
        """Return the body of an answer that is not streamed."""
        (choice,) = assemble(events, active.num_choices)
        return whole_message(self._asked.model, choice, active.usage, show_thinking=self._asked.show_thinking)

    def writer(self, active: ActiveRequest) -> BlockWriter:
        """Return the writer of a stream."""
        return BlockWriter(self._asked.model, active.usage, show_thinking=self._asked.show_thinking)


ROUTES = tuple(
    ApiRoute("POST", f"{prefix}{path}", endpoint, body=json_body(schema))
    for prefix in ("", "/anthropic")
    for path, endpoint, schema in (
        ("/v1/messages", messages, MessagesRequest),
        ("/v1/messages/count_tokens", count_tokens, CountTokensRequest),
    )
)
