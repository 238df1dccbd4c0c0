"""The life of a process around its gRPC service: start, health, draining, exit."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime.errors import CheckpointError, MoonshardError, StoreNotSupported, Unavailable
from services.runtime.health import HealthServicer
from services.runtime.interceptor import CallInterceptor
from services.runtime.liveness import BEAT_S, LIVENESS
from services.runtime.logs import setup_logging
from services.runtime.metrics import metrics_port
from services.runtime.settings import ServiceSettings
from services.runtime.tls import TlsFiles, server_credentials, tls_files
from services.runtime.tracing import Tracer, open_tracer

SERVER_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.max_concurrent_streams", 4096),  # of a connection; the engines have the real bounds
    ("grpc.so_reuseport", 0),  # a second process on the same port is a mistake, not a replica
    # Our clients ping also on idle connections.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

AddServices = Callable[[grpc.aio.Server], None]
Hook = Callable[[], Awaitable[object]]


def run(settings: ServiceSettings, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a process: logs, metrics port, event loop, exit code. To be called once, by `__main__`.

    The process ends with `main`. A `MoonshardError` becomes one log line and exit code 1. An unusable checkpoint or
    store gives exit code 2, as bad settings do, so that a supervisor does not start the process again.
    """
    setup_logging(settings.log_level, name, settings.instance)
    try:
        # Before `main`, so that probes and scrapes see the progress of loading.
        with metrics_port(settings.metrics_listen, lambda: LIVENESS.is_alive) as address:
            if address:
                logging.getLogger(name).info("metrics", extra={"address": address})
            uvloop.run(main())
    except MoonshardError as error:
        logging.getLogger(name).critical(error.message, extra={"error": type(error).__name__})
        raise SystemExit(2 if isinstance(error, CheckpointError | StoreNotSupported) else 1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    logging.shutdown()
    # Everything is closed. A regular end of the interpreter takes seconds with torch, and gRPC's threads may crash.
    os._exit(0)


async def serve(
    settings: ServiceSettings,
    name: str,
    add_services: AddServices,
    *,
    ready: Hook | None = None,
    on_drain: Hook | None = None,
    until: Hook | None = None,
    serving: AsyncIterator[bool] | None = None,
    tracer: Tracer | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    name      name of the process, for the log
    ready     awaited after the port is bound; then health is SERVING. An error ends the process
    on_drain  awaited after health has become NOT_SERVING, while calls are still accepted: finish or hand over, and end
              streams that do not end by themselves. It shares `drain_s` with the calls in flight
    until     work beside the server, such as an engine; cancelled after the drain. If it ends by itself, the process
              drains and ends too, with its error if there is one
    tracer    closed at the end; by default the settings determine whether there are traces
    serving   yields whether the process can serve, at every change, endlessly; an error counts like one of `until`
    """
    log = logging.getLogger(name)
    with _stop_signal() as stop:
        tls = tls_files(settings)
        tracer = tracer or open_tracer(settings.trace_endpoint, name, settings.instance)
        server, health, address = await _start(add_services, settings.listen, log, tls, tracer)
        probes, probe_address = await _start_probes(health, settings.health_listen, log)
        log.info("listening", extra={"address": address, "health_address": probe_address, "tls": tls is not None})
        beats = asyncio.create_task(_beat())
        beside = [asyncio.ensure_future(stop.get_loop().create_future() if until is None else until())]
        try:
            if ready is not None:
                await _unless([stop, *beside], ready())
            if not any(end.done() for end in (stop, *beside)):
                await health.set(True)
                log.info("ready", extra={"address": address})
                if serving is not None:
                    beside.append(asyncio.create_task(_follow(serving, health, log)))
                await asyncio.wait([stop, *beside], return_when=asyncio.FIRST_COMPLETED)
            log.info("draining", extra={"drain_s": settings.drain_s})
            await _drain(server, health, on_drain, settings.drain_s, log)
        finally:
            beats.cancel()
            await server.stop(None)
            if probes is not None:
                await probes.stop(None)
            if tracer is not None:
                await tracer.close()
            for work in beside:
                work.cancel()
            await asyncio.wait(beside)
    for work in beside:
        if not work.cancelled():
            work.result()
    log.info("stopped")


async def start_server(
    add_services: AddServices, listen: str = "127.0.0.1:0", tls: TlsFiles | None = None
) -> tuple[grpc.aio.Server, str]:
    """Start a server that serves at once; return it with its bound address. The caller stops it."""
    server, health, address = await _start(add_services, listen, logging.getLogger("server"), tls)
    await health.set(True)
    return server, address


async def _beat() -> None:
    while True:
        LIVENESS.beat()
        await asyncio.sleep(BEAT_S)


async def _follow(serving: AsyncIterator[bool], health: HealthServicer, log: logging.Logger) -> None:
    async for able in serving:
        await health.set(able)
        log.info("ready again" if able else "not ready")


@contextmanager
def _stop_signal() -> Iterator[asyncio.Future[None]]:
    """Return a future that is done after the first SIGTERM or SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def on_signal() -> None:
        stop.set_result(None)
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def _unless(ends: Sequence[asyncio.Future[Any]], work: Awaitable[object]) -> None:
    """Wait for the work and raise its error; cancel it if one of the ends comes first."""
    task: asyncio.Future[Any] = asyncio.ensure_future(work)
    try:
        await asyncio.wait([*ends, task], return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _drain(
    server: grpc.aio.Server, health: HealthServicer, on_drain: Hook | None, drain_s: float, log: logging.Logger
) -> None:
    deadline = asyncio.get_running_loop().time() + drain_s
    await health.drain()
    if on_drain is not None:
        try:
            async with asyncio.timeout_at(deadline):
                await on_drain()
        except TimeoutError:
            log.warning("draining was given up after %g s", drain_s)
    await health.close()
    await server.stop(max(deadline - asyncio.get_running_loop().time(), 0))


async def _start(
    add_services: AddServices, listen: str, log: logging.Logger, tls: TlsFiles | None, tracer: Tracer | None = None
) -> tuple[grpc.aio.Server, HealthServicer, str]:
    server = grpc.aio.server(interceptors=[CallInterceptor(log, tracer)], options=SERVER_OPTIONS)
    services = _Services(server)
    add_services(cast(grpc.aio.Server, services))
    health = HealthServicer(services.names)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    shown = (*services.names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(shown, server)
    address = _bind(server, listen, tls)
    await server.start()
    return server, health, address


async def _start_probes(health: HealthServicer, listen: str, log: logging.Logger) -> tuple[grpc.aio.Server | None, str]:
    """Serve health alone, without TLS, which Kubernetes' gRPC probes do not support."""
    if not listen:
        return None, ""
    server = grpc.aio.server(interceptors=[CallInterceptor(log)], options=SERVER_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = _bind(server, listen, None)
    await server.start()
    return server, address


class _Services:
    """Wraps the server while services are added, to collect their names for health and reflection."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        found = (handler.service_name() for handler in handlers if isinstance(handler, grpc.ServiceRpcHandler))
        self.names = list(dict.fromkeys([*self.names, *found]))
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, Any]) -> None:
        self._server.add_registered_method_handlers(name, handlers)


def _bind(server: grpc.aio.Server, listen: str, tls: TlsFiles | None) -> str:
    """Bind the address; return it with the port that the kernel chose for port 0."""
    path = listen.removeprefix("unix:")
    try:
        if path != listen:
            _make_way(Path(path))
        if tls is None or path != listen:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, server_credentials(tls))
    except (RuntimeError, OSError) as error:
        raise Unavailable(f"cannot listen on {listen}: {error}") from error
    return listen if path != listen else f"{listen.rpartition(':')[0]}:{port}"


def _make_way(path: Path) -> None:
    """Remove the socket of a killed process. gRPC would also take it from a living one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError("another process listens there")
