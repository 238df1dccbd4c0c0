"""The supervisor's checks of whether a process serves."""

import asyncio
import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from services.local.processes import GrpcReady, HttpReady, RedisReady
from services.runtime.redis_server import RedisServer
from services.runtime.server import start_server


@contextlib.contextmanager
def http_server(status, health_id=""):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            if health_id:
                self.send_header("x-moonshard-id", health_id)
            self.end_headers()

        def log_message(self, *_):
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status, is_ready", [(200, True), (503, False)])
def test_http(status, is_ready, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with http_server(status) as url:
        assert HttpReady(f"{url}/health")() == is_ready
    assert not HttpReady(f"{url}/health")()


def test_another_server_on_the_same_port_is_not_ours():
    """Two clusters chose the same free port, and one gateway died: answers of the other must not count as its."""
    with http_server(200, "moonshard-theirs") as url:
        assert HttpReady(f"{url}/health", "moonshard-theirs")()
        assert not HttpReady(f"{url}/health", "moonshard-ours")()
    with http_server(200) as url:
        assert not HttpReady(f"{url}/health", "moonshard-ours")()


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
async def test_grpc(tmp_path, scheme):
    listen = f"unix:{tmp_path}/s" if scheme == "unix" else "127.0.0.1:0"
    server, address = await start_server(lambda _: None, listen)
    # In a thread: the server needs this loop to answer.
    assert await asyncio.to_thread(GrpcReady(address))
    await server.stop(None)
    assert not await asyncio.to_thread(GrpcReady(address))


def test_grpc_without_a_server(tmp_path):
    (tmp_path / "left-behind").touch()
    assert not GrpcReady(f"unix:{tmp_path}/left-behind")()
    assert not GrpcReady(f"unix:{tmp_path}/nothing")()


def test_redis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r")
    path = str(folder / "redis.sock")
    assert not RedisReady(path)()
    with RedisServer(folder):
        assert RedisReady(path)()
    assert not RedisReady(path)()
