"""What every process measures about itself, and the port where it is read."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app, start_http_server

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


@contextmanager
def metrics_port(listen: str) -> Iterator[str]:
    """Serve GET /metrics on "host:port" or "unix:/path" in a thread of its own and yield the bound address.

    Does nothing if `listen` is empty.
    """
    if not listen:
        yield ""
        return
    host, _, port = listen.rpartition(":")
    try:
        if listen.startswith("unix:"):
            server, thread = _serve_on_socket(listen.removeprefix("unix:"))
            address = listen
        else:
            server, thread = start_http_server(int(port), host.strip("[]"))
            address = f"{host}:{server.server_port}"
    except OSError as error:
        raise Unavailable(f"cannot serve metrics on {listen}: {error.strerror}") from error
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
        """Scrapes leave no line."""


def _serve_on_socket(path: str) -> tuple[WSGIServer, threading.Thread]:
    Path(path).unlink(missing_ok=True)  # of a process that was killed
    server = _SocketServer(cast(Any, path), _Silent)
    server.set_app(make_wsgi_app())
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return server, thread
