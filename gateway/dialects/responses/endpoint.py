"""POST /v1/responses, and a clear no to everything that would need a stored response."""

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.context import call_context, gateway_of
from gateway.dialects.respond import deliver
from gateway.dialects.responses import answer_types
from gateway.dialects.responses.answer import ItemWriter, Resource, whole_response
from gateway.dialects.responses.output import ItemBuilder
from gateway.dialects.responses.request import AskedResponse, parse_responses
from gateway.dialects.responses.schema import ResponsesRequest
from gateway.http.body import quote
from gateway.http.openapi import json_body
from gateway.http.routes import ApiRoute
from gateway.request.active_request import ActiveRequest
from gateway.request.answer_model import AnswerEvent
from services.runtime.errors import NotFound


async def responses(request: Request) -> Response:
    """Answer a conversation: one response, or with `stream` server-sent events that end with `response.completed`."""
    gateway = gateway_of(request)
    parse = partial(parse_responses, refuse_unknown=gateway.settings.unknown_fields == "refuse")
    asked = await gateway.bodies.read_json(request, parse)
    call_context(request).ignored.extend(asked.ignored)
    gateway.models.check(asked.asked.model)
    return await deliver(request, asked.request, ResponseAnswerer(asked), stream=asked.asked.stream is True)


async def stored_response(request: Request) -> Response:
    """Answer 404: responses are not stored."""
    response_id = quote(request.path_params["response_id"])
    raise NotFound(f"there is no response {response_id}: keeping responses is not supported")


class ResponseAnswerer:
    """Shows an answer as a response."""

    def __init__(self, asked: AskedResponse) -> None:
        self._resource = Resource(asked)
        self._items = ItemBuilder(
            asked.tools.by_name, seals_reasoning=asked.seals_reasoning, summarises=asked.summarises
        )

    def whole(self, events: Sequence[AnswerEvent], active: ActiveRequest) -> answer_types.Response:
        """Return the body of an answer that is not streamed."""
        return whole_response(self._resource, self._items, events, active.usage)

    def writer(self, active: ActiveRequest) -> ItemWriter:
        """Return the writer of a stream."""
        return ItemWriter(self._resource, self._items, active.usage)


ROUTES = (
    ApiRoute("POST", "/v1/responses", responses, body=json_body(ResponsesRequest)),
    ApiRoute("GET", "/v1/responses/{response_id}", stored_response),
    ApiRoute("DELETE", "/v1/responses/{response_id}", stored_response),
    ApiRoute("GET", "/v1/responses/{response_id}/input_items", stored_response),
    ApiRoute("POST", "/v1/responses/{response_id}/cancel", stored_response),
)
