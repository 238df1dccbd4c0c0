"""Metrics of every process, and their port."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app

from services.runtime.errors import Unavailable

RPC_SECONDS = Histogram(
    "moonshard_rpc_seconds",
    "One call as its server sees it, from the request's arrival to the last response; streams last as long as they do.",
    ["method", "code"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
RPCS_RUNNING = Gauge("moonshard_rpcs_running", "Calls that a handler of this process works on now.", ["method"])

STORE_SECONDS = Histogram(
    "moonshard_store_seconds",
    "One pipeline to one Redis instance, from the wish to send it to its last answer.",
    ["operation"],
    buckets=(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
STORE_READS = Counter(
    "moonshard_store_reads_total",
    "Values asked of the store, by kind (kv, tail, media; data, head, list of files): hit, or why it counts as missing "
    "(missing, short, damaged, misnamed, unreachable).",
    ["kind", "outcome"],
)
STORE_WRITES = Counter("moonshard_store_writes_total", "Values given to the store: stored or unreachable.", ["outcome"])
STORE_BYTES = Counter("moonshard_store_bytes_total", "Bytes of values, protocol excluded.", ["direction"])
LOAD_BYTES = Counter("moonshard_load_bytes_total", "Bytes of the weights that have been read since the start.")
LOAD_EXPECTED_BYTES = Gauge("moonshard_load_expected_bytes", "Bytes of the weights that this process reads, about.")

LIVE_PATH = "/live"


@contextmanager
def metrics_port(listen: str, is_alive: Callable[[], bool] | None = None) -> Iterator[str]:
    """Serve GET /metrics on "host:port" or "unix:/path" in a separate thread; yield the bound address.

    Does nothing if `listen` is empty. With `is_alive`, GET /live is 200 or 503, also while the main thread is busy.
    """
    if not listen:
        yield ""
        return
    host, _, port = listen.rpartition(":")
    path = listen.removeprefix("unix:")
    try:
        server: WSGIServer
        if path != listen:
            Path(path).unlink(missing_ok=True)  # of a process that was killed
            server, address = _SocketServer(cast(Any, path), _Silent), listen
        else:
            server = _PortServer((host.strip("[]"), int(port)), _Silent)
            address = f"{host}:{server.server_port}"
    except OSError as error:
        raise Unavailable(f"cannot serve metrics on {listen}: {error.strerror}") from error
    server.set_app(_app(is_alive))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _PortServer(ThreadingMixIn, WSGIServer):
    """WSGI over TCP, IPv4 or IPv6."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _SocketServer(ThreadingMixIn, WSGIServer):
    """WSGI over a Unix socket, whose callers have neither host nor port."""

    address_family = socket.AF_UNIX
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = super().get_request()
        return connection, ("localhost", 0)


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log no line for a scrape."""


def _app(is_alive: Callable[[], bool] | None) -> Any:
    """Return the WSGI application of the port."""
    metrics = make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if is_alive is None or environ["PATH_INFO"] != LIVE_PATH:
            return cast(Iterable[bytes], metrics(environ, start_response))
        alive = is_alive()
        start_response("200 OK" if alive else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"alive\n" if alive else b"nothing has moved for too long\n"]

    return app
