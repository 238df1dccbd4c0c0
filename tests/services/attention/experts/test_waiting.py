"""Who spins: a caller with cores of its own, towards shards with cores of their own, and nobody else."""

import asyncio
import socket
import subprocess
import sys
import time

import pytest

from services.attention.experts.waiting import AWAKE_S, may_wait_awake, own_cores, peer_cores
from services.wire.library import LIBRARY
from tests.services.attention.experts.dispatching import connected, dispatch
from tests.services.expert.serving import ServerThread, random_work, short_folder


@pytest.mark.parametrize(
    "own, peers, awake",
    [
        pytest.param({0}, [{1}], True, id="apart"),
        pytest.param({0, 1}, [{2, 3}, {4}], True, id="all-apart"),
        pytest.param({0, 1}, [{1}], False, id="shared-with-a-shard"),
        pytest.param({0}, [{1}, {1}], False, id="two-shards-on-one-core"),
        pytest.param({0}, [{1}, None], False, id="unknown"),
    ],
)
def test_the_rule(own, peers, awake):
    assert may_wait_awake(frozenset(own), [p if p is None else frozenset(p) for p in peers]) == awake


def test_the_cores_of_a_peer(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        core = max(own_cores())
        code = f"import os, socket; os.sched_setaffinity(0, [{core}]); s = socket.socket(socket.AF_UNIX); "
        code += f"s.connect({path!r}); s.recv(1)"
        with subprocess.Popen([sys.executable, "-c", code]):
            sock, _ = listener.accept()
            with sock:
                assert peer_cores(sock) == {core}
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        assert peer_cores(sock) is None


@pytest.mark.skipif(LIBRARY is None, reason="the native wire is not built")
@pytest.mark.parametrize("cores, budget_s", [({990}, AWAKE_S), ({0, 1, 2, 3}, 0.0)])
async def test_an_engine_follows_the_rule(stack, model, monkeypatch, cores, budget_s):
    found = []
    monkeypatch.setattr(
        "services.wire.native_client.NativeClient.wait_awake", lambda _, budget_s: found.append(budget_s)
    )
    monkeypatch.setattr("services.attention.experts.native_wire.own_cores", lambda: frozenset(cores))
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0", native=True))
    async with connected(model, [[server.address]], "shared"):
        assert found[-1] == budget_s


@pytest.mark.parametrize("transport", ["shared", "unix"])
@pytest.mark.slow
async def test_nothing_spins_when_idle_or_while_answers_take_long(stack, model, monkeypatch, transport):
    monkeypatch.setattr("services.attention.experts.native_wire.may_wait_awake", lambda *_: True)
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0"))
    async with connected(model, [[server.address]], transport) as experts:
        for step in range(3):
            await dispatch(experts, random_work(model, 1), step)
        server.shard.hold()
        result = dispatch(experts, random_work(model, 1), 3)
        used_s = time.process_time()
        experts._wire.client.poll(result.batch.call, 0.5)
        assert time.process_time() - used_s < 0.1
        server.shard.release()
        await result
        used_s = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - used_s < 0.1
