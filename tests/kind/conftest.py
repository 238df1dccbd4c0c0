"""A release for all tests of this folder, in whatever cluster KUBECONFIG reaches; without one they are skipped."""

import os
import secrets
import shutil
from collections.abc import Iterator

import helm_python
import pytest
from kubernetes import config

from tests.kind.installed import Installed, installed


@pytest.fixture(scope="session")
def cluster() -> None:
    """A cluster that answers. Never one that nobody meant: the image that it can pull has to be named as well."""
    if not os.environ.get("KUBECONFIG") or not os.environ.get("MOONSHARD_TEST_IMAGE"):
        pytest.skip("KUBECONFIG and MOONSHARD_TEST_IMAGE name no cluster to install into (`make kind` does)")
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    try:
        with helm_python.Config() as helm:
            helm.check_reachable()
        config.load_kube_config()
    except (helm_python.HelmError, config.ConfigException) as error:
        pytest.skip(f"the cluster of KUBECONFIG cannot be reached: {error}")


@pytest.fixture(scope="session")
def release(cluster: None) -> Iterator[Installed]:
    """The nano overlay. MOONSHARD_TEST_IMAGE is repository:tag without the ending -nano.

    A node without a registry needs that image and Redis' already; MOONSHARD_TEST_REDIS_IMAGE names another one.
    """
    repository, _, tag = os.environ["MOONSHARD_TEST_IMAGE"].rpartition(":")
    values: dict[str, object] = {"image": {"repository": repository, "tag": tag}}
    if redis := os.environ.get("MOONSHARD_TEST_REDIS_IMAGE"):
        values["redis"] = {"image": redis}
    with installed(f"moonshard-{secrets.token_hex(4)}", values) as release:
        yield release
