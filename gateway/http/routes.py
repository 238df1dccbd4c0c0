"""Routes of the API: Starlette's, with what the OpenAPI document says of the request."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Endpoint = Callable[[Request], Awaitable[Response]]


class ApiRoute(Route):
    """One method of one path. The endpoint's docstring is its summary in the document.

    body  an OpenAPI `requestBody`; None where nothing is sent
    """

    def __init__(self, method: str, path: str, endpoint: Endpoint, *, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method = method
        self.summary = " ".join((endpoint.__doc__ or "").split())
        self.body = body


def json_response(body: Mapping[str, Any]) -> Response:
    """Return the body as JSON, with status 200."""
    return Response(orjson.dumps(body), media_type="application/json")
