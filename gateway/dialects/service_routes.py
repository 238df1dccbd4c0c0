"""The small endpoints: models, health, metrics, version."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Metric, generate_latest
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gateway.dialects.context import call_context, gateway_of
from gateway.dialects.service_types import Health, Version
from gateway.http.routes import ApiRoute, json_response
from gateway.metrics import KEY_SERIES
from gateway.version import VERSION
from services.runtime.errors import Unavailable


async def list_models(request: Request) -> Response:
    """List the models that are served."""
    gateway = gateway_of(request)
    return json_response(gateway.models.listing(await gateway.cluster.context_tokens(call_context(request))))


async def get_model(request: Request) -> Response:
    """Describe one model, by its name or by an alias."""
    gateway = gateway_of(request)
    name = request.path_params["name"]
    gateway.models.check(name)
    return json_response(gateway.models.entry(name, await gateway.cluster.context_tokens(call_context(request))))


async def health(request: Request) -> Response:
    """Answer 200 if a chat request could be served now, or held while roles wake; 503 otherwise."""
    cluster = gateway_of(request).cluster
    if not (cluster.can_serve or cluster.can_hold):
        raise Unavailable(cluster.what_is_missing)
    answer: Health = {"status": "ok" if cluster.can_serve else "holding"}
    response = json_response(answer)
    if health_id := gateway_of(request).settings.health_id:
        response.headers["x-moonshard-id"] = health_id
    return response


async def live(request: Request) -> Response:
    """Answer 200 while the process lives."""
    return json_response({"status": "ok"})


async def get_version(request: Request) -> Response:
    """Return the version of this build."""
    answer: Version = {"version": VERSION}
    return json_response(answer)


async def metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format, without those of single keys, which the metrics port has."""
    return Response(generate_latest(_WithoutKeys()), media_type=CONTENT_TYPE_LATEST)


class _WithoutKeys(CollectorRegistry):
    """All metrics of the process but those by key."""

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in REGISTRY.collect() if not metric.name.startswith(KEY_SERIES))


async def root(request: Request) -> Response:
    """Say what this server is and where its API is described."""
    here = {"name": "Moonshard", "version": VERSION, "docs": "/docs", "openapi": "/openapi.json", "api": "/v1"}
    if "text/html" not in request.headers.get("accept", ""):
        return json_response(here)
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Moonshard</title><h1>Moonshard {VERSION}</h1>"
        "<p>An inference server with the APIs of OpenAI, Anthropic and Kimi under <code>/v1</code>. "
        "<a href=/docs>All operations</a>, <a href=/openapi.json>the same for programs</a>.</p>"
    )


ROUTES = (
    ApiRoute("GET", "/v1/models", list_models),
    ApiRoute("GET", "/v1/models/{name:path}", get_model),
    ApiRoute("GET", "/health", health),
    ApiRoute("GET", "/ping", health),
    ApiRoute("GET", "/live", live),
    ApiRoute("GET", "/version", get_version),
    ApiRoute("GET", "/metrics", metrics),
    ApiRoute("GET", "/", root),
)
