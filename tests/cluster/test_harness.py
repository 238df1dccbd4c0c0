"""The harness, on which the other tests of this folder rely."""

import signal
import time

import httpx
import psutil
import pytest

from tests.cluster.harness import Cluster, small_topology


@pytest.fixture(scope="module")
def smallest(tiny_checkpoint, tmp_path_factory):
    """The smallest cluster that answers, for one test alone: these tests damage it."""
    topology = small_topology(tiny_checkpoint, experts=0, prefills=0)
    with Cluster(topology, tmp_path_factory.mktemp("cluster") / "cluster.log") as cluster:
        yield cluster


def complete(cluster, **fields):
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0}
    answer = httpx.post(f"{cluster.url}/v1/chat/completions", json=body | fields, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["reasoning"]


def test_answers(smallest):
    assert smallest.names == ["redis-0", "tokenizer-0", "decode-0", "gateway"]
    assert list(smallest.pids) == smallest.names
    assert complete(smallest) == complete(smallest)
    assert smallest.memory_bytes("decode-0") > 2**20
    assert smallest.address("decode-0").startswith("unix:")
    assert [line["msg"] for line in smallest.log("decode-0")].count("ready") == 1


def test_killed_process_comes_back(smallest):
    before = complete(smallest)
    pid = smallest.pids["decode-0"]
    smallest.kill("decode-0")
    assert not psutil.pid_exists(pid)
    smallest.wait_ready("decode-0")
    assert smallest.pids["decode-0"] != pid
    assert complete(smallest) == before


def test_held_process_stays_down(smallest):
    smallest.hold("tokenizer-0")
    smallest.kill("tokenizer-0")
    assert "tokenizer-0" not in smallest.pids
    smallest.release("tokenizer-0")
    smallest.wait_ready()
    assert list(smallest.pids) == smallest.names
    complete(smallest)


def test_stopped_process_goes_on(smallest):
    smallest.send("redis-0", signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while psutil.Process(smallest.pids["redis-0"]).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    smallest.send("redis-0", signal.SIGCONT)
    complete(smallest)


def test_polite_restart(smallest):
    smallest.restart("gateway")
    complete(smallest)
    assert [line["msg"] for line in smallest.log("gateway")].count("listening") == 2


def test_unclean_end_is_noticed(tiny_checkpoint, tmp_path):
    """A process that ignores SIGTERM fails the test that started the cluster."""
    topology = small_topology(tiny_checkpoint, experts=0, prefills=0, grace_s=0.5)
    cluster = Cluster(topology, tmp_path / "cluster.log").__enter__()
    cluster.send("tokenizer-0", signal.SIGSTOP)
    with pytest.raises(AssertionError, match="'tokenizer-0': 'killed'"):
        cluster.__exit__()
