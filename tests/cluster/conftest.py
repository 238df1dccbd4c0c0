"""Clusters for the end-to-end tests. A cluster takes seconds to start, so tests with the same topology share one."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.local.random_checkpoint.write import write_random_checkpoint
from services.runtime.blobs import BlobStore
from tests.cluster.harness import Cluster, small_topology
from tests.cluster.observed import ObservedCluster, observed_cluster, serve_some
from tests.reference.model import ReferenceModel
from tests.reference.vision import ReferenceVision

MAX_RUNNING_CLUSTERS = 2


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random weights in the released format."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_random_checkpoint(path, dims="tiny", seed=1)
    return path


@pytest.fixture(scope="session")
def start_cluster(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Return a function that starts a cluster: `start_cluster(experts=3, settings={"decode": {"NUM_BLOCKS": "8"}})`.

    The arguments are those of `small_topology`. The same arguments give the same cluster while it is one of the last
    MAX_RUNNING_CLUSTERS that were requested. A test leaves it as it was, with every process running.
    """
    running: OrderedDict[str, Cluster] = OrderedDict()

    def start(model: Path = tiny_checkpoint, **choices: Any) -> Cluster:
        topology = small_topology(model, **choices)
        key = repr(topology)
        if key not in running:
            if len(running) == MAX_RUNNING_CLUSTERS:
                _, oldest = running.popitem(last=False)
                oldest.__exit__()
            log_path = tmp_path_factory.mktemp("cluster") / "cluster.log"
            running[key] = Cluster(topology, log_path).__enter__()
        running.move_to_end(key)
        running[key].wait_ready()
        return running[key]

    yield start
    for cluster in running.values():
        cluster.__exit__()


@pytest.fixture
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """The usual cluster: two expert shards, one prefill and one decode replica."""
    return start_cluster()


@pytest.fixture(scope="session")
def reference(tiny_checkpoint: Path) -> ReferenceModel:
    """The language model of `tiny_checkpoint`, token by token."""
    return ReferenceModel(tiny_checkpoint)


@pytest.fixture(scope="session")
def vision(tiny_checkpoint: Path) -> ReferenceVision:
    """The vision tower of `tiny_checkpoint`."""
    return ReferenceVision(tiny_checkpoint)


@pytest.fixture
def seeing_cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """The usual cluster with a vision replica."""
    return start_cluster(visions=1)


@pytest.fixture(scope="session")
def observed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObservedCluster]:
    """A cluster with TLS, keys, traces and debug logs that has served some requests."""
    with observed_cluster(tiny_checkpoint, tmp_path_factory.mktemp("observed")) as cluster:
        serve_some(cluster)
        yield cluster


@pytest.fixture
async def store(seeing_cluster: Cluster) -> AsyncIterator[BlobStore]:
    """The store of `seeing_cluster`, opened by the test."""
    opened = BlobStore(seeing_cluster.store_urls, ttl_s=60, access=seeing_cluster.store_access)
    yield opened
    await opened.close()
