"""Start the gateway: `python -m gateway`."""

import asyncio
import logging
import signal
import socket

from gateway.app import create_app
from gateway.http.server import HttpServer, raise_file_limit
from gateway.http.stopping import Stopping
from gateway.settings import GatewaySettings
from services.runtime.errors import StoreNotSupported, Unavailable
from services.runtime.logs import setup_logging
from services.runtime.metrics import metrics_port
from services.runtime.settings import load
from services.runtime.store_check import check_store

BACKLOG = 2048

log = logging.getLogger("gateway")


def listen_on(address: str) -> socket.socket:
    """Return a listening socket for "host:port" or "unix:/path". Raises Unavailable if the address is taken."""
    try:
        if address.startswith("unix:"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address.removeprefix("unix:"))
            return listener
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {error.strerror}") from error


def bound_address(listener: socket.socket) -> str:
    """Return the address as bound, with the port that the kernel chose for port 0."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def main() -> None:
    """Read the settings and serve until SIGTERM or SIGINT, which end it when the open requests have ended."""
    settings = load(GatewaySettings)
    setup_logging(settings.log_level, "gateway", settings.instance)
    stopping = Stopping()
    try:
        asyncio.run(check_store(settings.store, settings.store_access))
        app = create_app(settings, stopping)
        listener = listen_on(settings.listen)
    except (StoreNotSupported, Unavailable) as error:
        log.critical(error.message)
        raise SystemExit(2 if isinstance(error, StoreNotSupported) else 1) from None
    log.info("listening", extra={"address": bound_address(listener)})
    raise_file_limit()
    server = HttpServer(app, settings, stopping)
    # Uvicorn repeats the signal to the earlier handlers once it has stopped. With these the process then ends with
    # status 0, also if the signal comes before uvicorn has installed its own.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    with metrics_port(settings.metrics_listen):
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
