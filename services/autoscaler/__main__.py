"""`python -m services.autoscaler`: sets the replicas of every role by what the gateways' requests need."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio

from protos import externalscaler_pb2_grpc
from services.autoscaler.gateways import Gateways
from services.autoscaler.keda import ExternalScaler, KedaBackend
from services.autoscaler.kubernetes import kubernetes_backend
from services.autoscaler.local import LocalBackend
from services.autoscaler.probe import probes
from services.autoscaler.scaler import Backend, Scaler
from services.autoscaler.settings import AutoscalerSettings
from services.runtime.server import run, serve
from services.runtime.settings import load
from services.runtime.tls import tls_files

NAME = "autoscaler"
STUCK_S = 60.0  # without a decision for so long the loop counts as stuck

log = logging.getLogger(NAME)


@asynccontextmanager
async def backend_of(settings: AutoscalerSettings) -> AsyncIterator[Backend]:
    """What carries the decisions out."""
    if settings.mode == "keda":
        yield KedaBackend({role: of.min for role, of in settings.roles.items()})
    elif settings.mode == "local":
        yield LocalBackend(settings.control)
    else:
        async with kubernetes_backend(settings) as backend:
            yield backend


async def main(settings: AutoscalerSettings) -> None:
    """Decide until SIGTERM."""
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(backend_of(settings))
        gateways = Gateways(settings.gateways, settings.discover_s, tls_files(settings))
        scaler = Scaler(gateways, backend, settings.limits, settings.timing, settings.decide_s)

        def lives() -> bool:
            return time.monotonic() - scaler.turned_s < STUCK_S + settings.decide_s

        minimum = {role: of.min for role, of in settings.roles.items()}

        def is_healthy() -> bool:
            # `helm install --wait` waits for this process: an installation without its minimum cannot answer.
            return lives() and gateways.demand is not None and backend.is_installed(minimum)

        probed = {"/live": lives, "/health": is_healthy}
        address = stack.enter_context(probes(settings.probe_listen, probed))
        if address:
            log.info("probes", extra={"address": address})

        def add_services(server: grpc.aio.Server) -> None:
            if settings.mode == "keda":
                shards = {role: of.shards for role, of in settings.roles.items()}
                externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server(ExternalScaler(scaler, shards), server)

        await serve(settings, NAME, add_services, until=scaler.run)


if __name__ == "__main__":
    arguments = load(AutoscalerSettings)
    run(arguments, NAME, lambda: main(arguments))
