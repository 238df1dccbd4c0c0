"""What every process measures about itself, and the port where it is read."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram, start_http_server

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
    "Values asked of the store: hit, or why it counts as missing (missing, short, damaged, misnamed, unreachable).",
    ["outcome"],
)
STORE_WRITES = Counter("moonshard_store_writes_total", "Values given to the store: stored or unreachable.", ["outcome"])
STORE_BYTES = Counter("moonshard_store_bytes_total", "Bytes of values, protocol excluded.", ["direction"])


@contextmanager
def metrics_port(listen: str) -> Iterator[str]:
    """Serves GET /metrics on "host:port" in a thread of its own and gives the bound address; nothing if empty."""
    if not listen:
        yield ""
        return
    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"))
    except OSError as error:
        raise Unavailable(f"cannot serve metrics on {listen}: {error.strerror}") from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
