"""POST /v1/messages and POST /v1/messages/count_tokens, also under /anthropic."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.dialects.context import Gateway, call_context, gateway_of
from gateway.dialects.messages.answer import BlockWriter, whole_message
from gateway.dialects.messages.request import AskedMessage, parse_count, parse_messages
from gateway.dialects.messages.schema import CountTokensRequest, MessagesRequest
from gateway.dialects.respond import deliver
from gateway.http.body import read_object
from gateway.http.openapi import json_body
from gateway.http.sse import until_gone
from gateway.request.active_request import ActiveRequest
from gateway.request.chat_model import Event, assemble

router = APIRouter()


@router.post(
    "/v1/messages",
    response_model=None,
    openapi_extra=json_body(MessagesRequest),
    summary="Answers a conversation, in Anthropic's dialect.",
)
@router.post("/anthropic/v1/messages", response_model=None, openapi_extra=json_body(MessagesRequest))
async def messages(request: Request) -> Response:
    """One message, or with `stream` server-sent events that end with `message_stop`."""
    gateway = gateway_of(request)
    body = await read_object(request, gateway.settings.max_body_bytes)
    asked = parse_messages(body, default_thinking=_thinks_by_default(gateway))
    gateway.models.check(asked.model)
    return await deliver(request, asked.request, MessageAnswerer(asked), stream=asked.stream)


@router.post(
    "/v1/messages/count_tokens",
    response_model=None,
    openapi_extra=json_body(CountTokensRequest),
    summary="Counts the tokens of a prompt.",
)
@router.post("/anthropic/v1/messages/count_tokens", response_model=None, openapi_extra=json_body(CountTokensRequest))
async def count_tokens(request: Request) -> dict[str, int]:
    """The `input_tokens`, cached or not, that the same request to /v1/messages would have."""
    gateway = gateway_of(request)
    body = await read_object(request, gateway.settings.max_body_bytes)
    model, conversation = parse_count(body, default_thinking=_thinks_by_default(gateway))
    gateway.models.check(model)
    counting = gateway.pipeline.count(conversation, call_context(request))
    return {"input_tokens": await until_gone(counting, request.receive)}


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
