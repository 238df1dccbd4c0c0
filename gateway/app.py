"""The application: routes, error bodies, and the parts that live as long as the process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp

from gateway.cluster.cluster import Cluster
from gateway.cluster.demand import serve_demand
from gateway.dialects import files, service_routes, tokens
from gateway.dialects.answer_schemas import ANSWERS
from gateway.dialects.chat import endpoint as chat
from gateway.dialects.chat.schema import ChatCompletionRequest
from gateway.dialects.completions import endpoint as completions
from gateway.dialects.completions.schema import CompletionRequest, DetokenizeRequest, TokenizeRequest
from gateway.dialects.context import Gateway, call_context
from gateway.dialects.messages import endpoint as messages
from gateway.dialects.messages.schema import CountTokensRequest, MessagesRequest
from gateway.dialects.models import ModelNames
from gateway.dialects.responses import endpoint as responses
from gateway.dialects.responses.schema import ResponsesRequest
from gateway.http.api_docs import ApiDocs
from gateway.http.body import quote
from gateway.http.dialect import error_response
from gateway.http.errors import MethodNotAllowed
from gateway.http.guard import Guard
from gateway.http.keys import ApiKeys
from gateway.http.limits import KeyLimits
from gateway.http.middleware import RequestMiddleware
from gateway.http.openapi import openapi_document
from gateway.http.read_body import BodyReader
from gateway.http.stopping import Stopping
from gateway.request.files import FileDesk
from gateway.request.pipeline import Pipeline
from gateway.settings import GatewaySettings
from gateway.version import VERSION
from services.runtime.errors import InvalidRequest, MoonshardError, NotFound
from services.runtime.tls import tls_files
from services.runtime.tracing import open_tracer

TITLE = "Moonshard"
EXPOSED_HEADERS = ("request-id", "retry-after", "x-request-id", "x-should-retry", "x-trace-id")
BODIES = (
    ChatCompletionRequest,
    MessagesRequest,
    CountTokensRequest,
    ResponsesRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
)


ROUTES = (
    *chat.ROUTES,
    *messages.ROUTES,
    *responses.ROUTES,
    *completions.ROUTES,
    *tokens.ROUTES,
    *files.ROUTES,
    *service_routes.ROUTES,
)


def create_app(settings: GatewaySettings, stopping: Stopping) -> ASGIApp:
    """Return the whole gateway as an ASGI application, which watches its replicas from its start to its end."""
    limits = KeyLimits(settings)
    bodies = BodyReader(settings)
    tracer = open_tracer(settings.trace_endpoint, "gateway", settings.instance)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        cluster = Cluster(settings)
        await cluster.open()
        demand = await serve_demand(settings.demand_listen, cluster.demand, cluster.pools, tls_files(settings))
        desk = FileDesk(settings)
        pipeline = Pipeline(cluster, settings, desk, stopping)
        app.state.gateway = Gateway(settings, cluster, pipeline, ModelNames(settings), desk, bodies)
        try:
            yield
        finally:
            if demand is not None:
                await demand[0].stop(None)
            await cluster.close()
            await limits.close()
            bodies.close()
            await desk.close()
            if tracer is not None:
                await tracer.close()

    docs = ApiDocs(lambda: openapi_document(TITLE, VERSION, ROUTES, BODIES, ANSWERS))
    app = Starlette(
        routes=[*ROUTES, *docs.routes],
        lifespan=lifespan,
        exception_handlers={
            MoonshardError: _on_moonshard_error,
            HTTPException: _on_http_exception,
            Exception: _on_our_mistake,
        },
    )
    app.router.redirect_slashes = False
    guard = Guard(app, ApiKeys(settings.keys_file), limits, bodies.budget, settings.open_paths)
    front: ASGIApp = guard
    if settings.cors_origins:
        front = CORSMiddleware(
            guard,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )
    return RequestMiddleware(front, settings.request_s, tracer, settings.trace_sample_ratio if tracer else 0.0)


async def _on_moonshard_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MoonshardError)
    context = call_context(request)
    context.note_refusal(error)
    return error_response(error, request.url.path, context.request_id)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what no route serves."""
    assert isinstance(error, HTTPException)
    path = quote(request.url.path)
    match error.status_code:
        case 404:
            return await _on_moonshard_error(request, NotFound(f"there is no {path}"))
        case 405:
            allow = _allowed(request)
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"allow": f"{allow}, OPTIONS"})
            refusal = MethodNotAllowed(f"{path} is not for {request.method}, only for {allow}", allow)
            return await _on_moonshard_error(request, refusal)
        case _:
            return await _on_moonshard_error(request, InvalidRequest(str(error.detail)))


def _allowed(request: Request) -> str:
    """Return the methods of all routes of the path; the router names those of the first alone."""
    fitting = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in fitting for method in route.methods}))


async def _on_our_mistake(request: Request, error: Exception) -> Response:
    """Answer a mistake of ours. The log has the exception; the client gets no internals."""
    return await _on_moonshard_error(request, MoonshardError("the gateway failed"))
