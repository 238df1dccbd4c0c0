"""GET /health and /live for probes, answered by a thread: also while the loop is busy or stuck."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from services.runtime.errors import Unavailable


@contextmanager
def probes(listen: str, checks: dict[str, Callable[[], bool]]) -> Iterator[str]:
    """Serve while the block runs: path -> whether it is 200 or 503. Yield the bound address; nothing if empty."""
    if not listen:
        yield ""
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            check = checks.get(self.path)
            self.send_response(404 if check is None else 200 if check() else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Probes are not news."""

    host, _, port = listen.rpartition(":")
    try:
        server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
    except OSError as error:
        raise Unavailable(f"cannot serve probes on {listen}: {error.strerror}") from error
    thread = Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
