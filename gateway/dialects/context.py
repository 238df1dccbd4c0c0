"""What an endpoint finds behind its request: the gateway's parts, and what the middleware knows of the call."""

from dataclasses import dataclass

from starlette.requests import Request

from gateway.cluster.cluster import Cluster
from gateway.dialects.models import ModelNames
from gateway.http.read_body import BodyReader
from gateway.http.request_context import RequestContext
from gateway.request.files import FileDesk
from gateway.request.pipeline import Pipeline
from gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of one gateway process. Created once, by the application."""

    settings: GatewaySettings
    cluster: Cluster
    pipeline: Pipeline
    models: ModelNames
    files: FileDesk
    bodies: BodyReader


def gateway_of(request: Request) -> Gateway:
    """Return the gateway that a request came to."""
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


def call_context(request: Request) -> RequestContext:
    """Return the ids and the deadline of a request."""
    context = request.scope["moonshard.context"]
    assert isinstance(context, RequestContext)
    return context
