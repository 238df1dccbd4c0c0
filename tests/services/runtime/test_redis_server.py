"""The embedded Redis server starts, writes nothing to disk, and reports why it cannot start."""

import subprocess
from pathlib import Path

import pytest
import redis

from services.runtime.errors import StoreUnavailable
from services.runtime.redis_server import RedisServer, find_redis_server
from tests.services.runtime.conftest import free_port


def test_there_is_one():
    path = find_redis_server()
    assert "Redis server" in subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


def test_an_installed_one_comes_first(tmp_path, monkeypatch):
    installed = tmp_path / "redis-server"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == installed


@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_it_answers_keeps_nothing_and_starts_again(socket_folder, over):
    server = RedisServer(socket_folder, port=free_port() if over == "tcp" else None)
    with server, redis.Redis.from_url(server.url) as client:
        client.set("a", "1")
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
        pid = server.pid
        server.kill()
        server.start()
        assert server.pid != pid
        assert client.get("a") is None
    server.stop()
    assert {path.name for path in socket_folder.iterdir()} <= {"redis.log"}


def test_a_port_that_is_taken(socket_folder):
    with RedisServer(socket_folder, port=free_port()) as first:
        port = int(first.url.rpartition(":")[2].partition("/")[0])
        second = RedisServer(socket_folder, port=port)
        with pytest.raises(StoreUnavailable, match=r"redis-server did not start: .*bind"):
            second.start()


def test_a_folder_too_deep_for_a_socket(tmp_path: Path):
    with pytest.raises(StoreUnavailable, match="too long for a socket"):
        RedisServer(tmp_path / ("a" * 100))
