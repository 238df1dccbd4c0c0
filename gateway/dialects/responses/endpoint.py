"""POST /v1/responses, and a clear no to everything that would need a stored response."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.dialects.context import gateway_of
from gateway.dialects.respond import deliver
from gateway.dialects.responses.answer import ItemWriter, Resource, whole_response
from gateway.dialects.responses.output import ItemBuilder
from gateway.dialects.responses.request import AskedResponse, parse_responses
from gateway.dialects.responses.schema import ResponsesRequest
from gateway.http.body import quote, read_object
from gateway.http.openapi import json_body
from gateway.request.active_request import ActiveRequest
from gateway.request.chat_model import Event
from services.runtime.errors import NotFound

router = APIRouter()


@router.post(
    "/v1/responses",
    response_model=None,
    openapi_extra=json_body(ResponsesRequest),
    summary="Answers a conversation, in the dialect of OpenAI's Responses.",
)
async def responses(request: Request) -> Response:
    """One response, or with `stream` server-sent events that end with `response.completed`."""
    gateway = gateway_of(request)
    asked = parse_responses(await read_object(request, gateway.settings.max_body_bytes))
    gateway.models.check(asked.asked.model)
    return await deliver(request, asked.request, ResponseAnswerer(asked), stream=asked.asked.stream is True)


@router.get("/v1/responses/{response_id}", response_model=None)
@router.delete("/v1/responses/{response_id}", response_model=None)
@router.get("/v1/responses/{response_id}/input_items", response_model=None)
@router.post("/v1/responses/{response_id}/cancel", response_model=None)
async def stored_response(response_id: str) -> Response:
    """Always 404."""
    raise NotFound(f"there is no response {quote(response_id)}: keeping responses is not supported")


class ResponseAnswerer:
    """Shows a run as a response."""

    def __init__(self, asked: AskedResponse) -> None:
        self._resource = Resource(asked)
        self._items = ItemBuilder(seals_reasoning=asked.seals_reasoning)

    def whole(self, events: Sequence[Event], run: ActiveRequest) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return whole_response(self._resource, self._items, events, run.usage)

    def writer(self, run: ActiveRequest) -> ItemWriter:
        """The writer of one that is."""
        return ItemWriter(self._resource, self._items, run.usage)
