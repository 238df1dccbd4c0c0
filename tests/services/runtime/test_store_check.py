"""A Redis Cluster is refused by name before a process serves; whatever else may come later."""

import os
import random
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
import redis

from services.runtime.errors import StoreNotSupported
from services.runtime.redis_access import NO_ACCESS
from services.runtime.redis_server import find_redis_server
from services.runtime.store_check import check_store
from tests.services.runtime.conftest import free_port

NUM_SLOTS = 16384


@contextmanager
def shard(folder, slots):
    """One master of a Redis Cluster that owns these slots."""
    folder.mkdir()
    # The bus of the cluster listens 10,000 ports above.
    port = next(port for port in iter(lambda: random.randrange(20000, 32000), 0) if is_free(port, port + 10000))
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--cluster-enabled", "yes"]
    process = subprocess.Popen([find_redis_server(), *options, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            wait_until(lambda: answers(client))
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            yield port, client
    finally:
        process.terminate()
        process.wait(10)


def is_free(*ports):
    with ExitStack() as stack:
        try:
            for port in ports:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            return False
    return True


def answers(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False


def wait_until(condition, timeout_s=30):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster_port(tmp_path_factory):
    """A port of a real Redis Cluster of two masters."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        _, one = stack.enter_context(shard(folder / "one", range(NUM_SLOTS // 2)))
        port, two = stack.enter_context(shard(folder / "two", range(NUM_SLOTS // 2, NUM_SLOTS)))
        one.execute_command("CLUSTER", "MEET", "127.0.0.1", str(port))
        wait_until(lambda: all(b"cluster_state:ok" in c.execute_command("CLUSTER", "INFO") for c in (one, two)))
        yield port


async def test_a_shard_of_a_cluster_is_refused_by_name(cluster_port):
    with pytest.raises(StoreNotSupported) as refused:
        await check_store([f"redis://127.0.0.1:{cluster_port}/0"], NO_ACCESS)
    assert refused.value.message.startswith(f"the store redis://127.0.0.1:{cluster_port}/0 answers MOVED ")
    assert "it belongs to a Redis Cluster, which is not supported" in refused.value.message


async def test_a_server_of_its_own_is_taken(redis_server):
    await check_store([redis_server.url], NO_ACCESS)


async def test_a_store_that_is_not_there_yet_does_not_stop_the_process(caplog):
    await check_store([f"redis://127.0.0.1:{free_port()}/0"], NO_ACCESS)
    assert "store cannot be checked" in caplog.text


def test_a_process_ends_with_2_so_that_nobody_starts_it_again(cluster_port):
    environ = {
        **os.environ,
        "MOONSHARD_LISTEN": "127.0.0.1:0",
        "MOONSHARD_TOKENIZERS": "127.0.0.1:1",
        "MOONSHARD_DECODES": "127.0.0.1:1",
        "MOONSHARD_STORE": f"redis://127.0.0.1:{cluster_port}/0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "gateway"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "Redis Cluster" in done.stdout + done.stderr
