"""The small endpoints: models, health, metrics, version."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from gateway.dialects.context import call_context, gateway_of
from services.runtime.errors import Unavailable

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The models that are served."""
    gateway = gateway_of(request)
    return gateway.models.listing(await gateway.cluster.context_tokens(call_context(request)))


@router.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> dict[str, Any]:
    """One model, by its name or by an alias."""
    gateway = gateway_of(request)
    gateway.models.check(name)
    return gateway.models.entry(name, await gateway.cluster.context_tokens(call_context(request)))


@router.get("/v1/users/me/balance")
async def balance() -> dict[str, Any]:
    """Kimi's clients ask for it. Nothing is billed here."""
    amounts = {"available_balance": 1000000.0, "voucher_balance": 0.0, "cash_balance": 1000000.0}
    return {"code": 0, "data": amounts, "scode": "0x0", "status": True}


@router.get("/health")
@router.get("/ping")
async def health(request: Request) -> dict[str, str]:
    """200 if a chat request could be served now, or held while roles wake; 503 otherwise."""
    cluster = gateway_of(request).cluster
    if not (cluster.can_serve or cluster.can_hold):
        raise Unavailable("no replica of every role is ready")
    return {"status": "ok" if cluster.can_serve else "holding"}


@router.get("/live")
async def live() -> dict[str, str]:
    """200 while the process lives."""
    return {"status": "ok"}


@router.get("/version")
async def get_version() -> dict[str, str]:
    """The version of this build."""
    return {"version": version("moonshard")}


@router.get("/metrics", response_class=Response)
async def metrics() -> Response:
    """Metrics in Prometheus' text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
