"""The small endpoints: models, health, metrics, version."""

from importlib.metadata import version

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.context import call_context, gateway_of
from gateway.http.routes import ApiRoute, json_response
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


async def balance(request: Request) -> Response:
    """Return a balance, which Kimi's clients ask for. Nothing is billed here."""
    amounts = {"available_balance": 1000000.0, "voucher_balance": 0.0, "cash_balance": 1000000.0}
    return json_response({"code": 0, "data": amounts, "scode": "0x0", "status": True})


async def health(request: Request) -> Response:
    """Answer 200 if a chat request could be served now, or held while roles wake; 503 otherwise."""
    cluster = gateway_of(request).cluster
    if not (cluster.can_serve or cluster.can_hold):
        raise Unavailable(cluster.what_is_missing)
    return json_response({"status": "ok" if cluster.can_serve else "holding"})


async def live(request: Request) -> Response:
    """Answer 200 while the process lives."""
    return json_response({"status": "ok"})


async def get_version(request: Request) -> Response:
    """Return the version of this build."""
    return json_response({"version": version("moonshard")})


async def metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


ROUTES = (
    ApiRoute("GET", "/v1/models", list_models),
    ApiRoute("GET", "/v1/models/{name:path}", get_model),
    ApiRoute("GET", "/v1/users/me/balance", balance),
    ApiRoute("GET", "/health", health),
    ApiRoute("GET", "/ping", health),
    ApiRoute("GET", "/live", live),
    ApiRoute("GET", "/version", get_version),
    ApiRoute("GET", "/metrics", metrics),
)
