"""Nano served as by `make serve`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local.checkpoints import NANO
from services.local.topology import Topology
from tests.cluster.harness import Cluster


@pytest.fixture(scope="module")
def nano_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start the processes of `moonshard up`, with its dtype."""
    log_path: Path = tmp_path_factory.mktemp("nano") / "cluster.log"
    with Cluster(Topology(NANO, visions=1), log_path) as cluster:
        cluster.wait_ready()
        yield cluster
