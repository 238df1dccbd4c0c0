"""POST /v1/responses, and a clear no to everything that would need a stored response."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.context import gateway_of
from gateway.dialects.respond import deliver
from gateway.dialects.responses.answer import ItemWriter, Resource, whole_response
from gateway.dialects.responses.output import ItemBuilder
from gateway.dialects.responses.request import AskedResponse, parse_responses
from gateway.dialects.responses.schema import ResponsesRequest
from gateway.http.body import quote
from gateway.http.openapi import json_body
from gateway.http.routes import ApiRoute
from gateway.request.active_request import ActiveRequest
from gateway.request.chat_model import Event
from services.runtime.errors import NotFound


async def responses(request: Request) -> Response:
    """Answer a conversation: one response, or with `stream` server-sent events that end with `response.completed`."""
    gateway = gateway_of(request)
    asked = await gateway.bodies.read_json(request, parse_responses)
    gateway.models.check(asked.asked.model)
    return await deliver(request, asked.request, ResponseAnswerer(asked), stream=asked.asked.stream is True)


async def stored_response(request: Request) -> Response:
    """Answer 404: responses are not stored."""
    response_id = quote(request.path_params["response_id"])
    raise NotFound(f"there is no response {response_id}: keeping responses is not supported")


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


ROUTES = (
    ApiRoute("POST", "/v1/responses", responses, body=json_body(ResponsesRequest)),
    ApiRoute("GET", "/v1/responses/{response_id}", stored_response),
    ApiRoute("DELETE", "/v1/responses/{response_id}", stored_response),
    ApiRoute("GET", "/v1/responses/{response_id}/input_items", stored_response),
    ApiRoute("POST", "/v1/responses/{response_id}/cancel", stored_response),
)
