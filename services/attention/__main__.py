"""python -m services.attention: one attention shard of a prefill or decode replica."""

import functools

import grpc
from prometheus_client import REGISTRY

from protos import attention_pb2_grpc
from services.attention.assembly import Assembly
from services.attention.experts.experts import Experts, LocalExperts
from services.attention.service import AttentionServicer
from services.attention.settings import AttentionSettings
from services.model.expert_load import ExpertLoadCollector
from services.runtime.server import run, serve
from services.runtime.settings import load
from services.runtime.store_check import check_store
from services.runtime.tracing import open_tracer

NAME = "attention"


async def serve_replica(settings: AttentionSettings) -> None:
    """Serve shard 0: the engine and its service."""
    await check_store(settings.store, settings.store_access)
    tracer = open_tracer(settings.trace_endpoint, NAME, settings.instance)
    replica = Assembly(settings, tracer).replica()
    show_load(replica.experts)
    servicer = AttentionServicer(replica.engine, replica.constraints, replica.limits, settings.role, tracer)

    def add_services(server: grpc.aio.Server) -> None:
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(servicer, server)
        attention_pb2_grpc.add_BlockServiceServicer_to_server(replica.block_servicer, server)

    ready = functools.partial(replica.open, settings.startup_s)
    try:
        await serve(
            settings,
            NAME,
            add_services,
            ready=ready,
            on_drain=servicer.drain,
            serving=replica.serving(),
            tracer=tracer,
        )
    finally:
        await replica.close()


async def serve_further_shard(settings: AttentionSettings) -> None:
    """Serve shard 1, 2, ...: layers that an engine elsewhere drives."""
    await check_store(settings.store, settings.store_access)
    shard = Assembly(settings).further_shard()
    show_load(shard.experts)

    def add_services(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((shard.servicer.handler(),))
        attention_pb2_grpc.add_BlockServiceServicer_to_server(shard.block_servicer, server)

    # Before gRPC answers: an engine that asks to be introduced must find every transport.
    shard.servicer.wire.start()
    drain = functools.partial(shard.drain, settings.drain_s)
    try:
        await serve(settings, NAME, add_services, ready=shard.open, on_drain=drain)
    finally:
        await shard.close()


def show_load(experts: Experts) -> None:
    """Count the load of the experts of this process; remote experts count their own."""
    if isinstance(experts, LocalExperts):
        REGISTRY.register(ExpertLoadCollector(experts.shard))


def main() -> None:
    settings = load(AttentionSettings)
    body = serve_replica if settings.shard == 0 else serve_further_shard
    run(settings, NAME, functools.partial(body, settings))


if __name__ == "__main__":
    main()
