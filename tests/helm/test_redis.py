"""What the chart's Redis starts with, started."""

import os
import re
import subprocess
import time
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from services.runtime.redis_server import find_redis_server
from tests.helm.rendering import EVERYTHING, pods

GIB = 2**30
OPEN: dict[str, Any] = {"store": {"generateSecrets": False}}


@contextmanager
def started(values: Any, folder, component="redis-0"):
    """Run the container's command with a real server, which listens on a socket in `folder` alone."""
    (container,) = pods(values)[component]["containers"]
    limit = container["resources"]["limits"]["memory"]
    (memory,) = [entry for entry in container["env"] if entry["name"] == "MEMORY_LIMIT_BYTES"]
    assert memory["valueFrom"] == {"resourceFieldRef": {"resource": "limits.memory"}}
    (folder / "redis-server").symlink_to(find_redis_server())
    (folder / "password").write_text("pass word")
    places = {"/tmp": str(folder), "/secrets/store": str(folder)}
    script = re.sub("/tmp|/secrets/store", lambda found: places[found[0]], container["args"][0])
    arguments = [places.get(argument, argument) for argument in container["args"][1:]]
    command = [*container["command"], script, *arguments, "--port", "0", "--unixsocket", str(folder / "socket")]
    scale = {"Gi": GIB, "Mi": 2**20}[limit[-2:]]
    environ = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "MEMORY_LIMIT_BYTES": str(int(limit[:-2]) * scale),
    }
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while not (folder / "socket").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        yield str(folder / "socket")
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(
    ("values", "component", "password", "most", "policy"),
    [
        pytest.param(OPEN, "redis-0", None, 8 * GIB, "allkeys-lru", id="defaults"),
        pytest.param(OPEN | {"redis": {"resources": {"limits": {"memory": "3Gi"}}}}, "redis-0", None, 12 * GIB // 5,
                     "allkeys-lru", id="another-limit"),
        pytest.param(EVERYTHING, "redis-limits", "pass word", 512 * 2**20 // 5 * 4, "noeviction", id="limits"),
    ],
)  # fmt: skip
def test_values_take_four_fifths_of_the_memory_limit(tmp_path, values, component, password, most, policy):
    with started(values, tmp_path, component) as socket:
        client = redis.Redis(unix_socket_path=socket, password=password)
        found = client.config_get("maxmemory*")
        assert found["maxmemory-policy"] == policy
        assert int(found["maxmemory"]) == pytest.approx(most, abs=8)
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("protected-mode") == {"protected-mode": "yes" if password else "no"}


@pytest.mark.slow
def test_the_password_shows_neither_in_arguments_nor_in_the_environment(tmp_path):
    (container,) = pods(EVERYTHING)["redis-0"]["containers"]
    assert [entry["name"] for entry in container["env"]] == ["MEMORY_LIMIT_BYTES"]
    with started(EVERYTHING, tmp_path) as socket:
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(unix_socket_path=socket).ping()
        assert redis.Redis(unix_socket_path=socket, password="pass word").ping()
        command = subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout
        assert "redis-server" in command
        assert "pass word" not in command
