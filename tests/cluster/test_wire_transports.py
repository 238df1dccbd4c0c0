"""Every way of a token to its experts: the tokens are those of the model, also after a shard was killed or stopped."""

import os
import signal
import time

import pytest

from tests.cluster.client import TokenClient
from tests.cluster.test_faults import answers, settle
from tests.cluster.test_parity import prompt
from tests.services.runtime.certificates import Authority

TOPOLOGY = {"experts": 2, "expert_replicas": 2, "prefills": 1, "decodes": 1, "tokenizers": 1}
STOPPED_S = 1.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Settings of a process that speaks TLS. Unix sockets have none, but frames over TCP are sealed."""
    tls = Authority().write(tmp_path_factory.mktemp("tls"))
    return {"TLS_CERT": str(tls.cert), "TLS_KEY": str(tls.key), "TLS_CA": str(tls.ca), "TLS_NAME": tls.name}


@pytest.mark.parametrize("carrier", ["shared", "unix", "tcp", "sealed", "grpc"])
async def test_a_transport_serves_and_survives_losses(start_cluster, reference, certificates, carrier):
    tls = certificates if carrier == "sealed" else {}
    settings = {
        "attention": {"EXPERT_TRANSPORT": "tcp" if carrier == "sealed" else carrier, **tls},
        "expert": {"WIRE_PORT": "0", **tls},
    }
    cluster = start_cluster(settings=settings, **TOPOLOGY)
    assert f'moonshard_dispatch_streams{{transport="{carrier}"}} 4.0' in cluster.metrics("decode-0")
    async with TokenClient(cluster) as client:
        for num_tokens in (1, 65, 300):
            assert await client.generate(prompt(num_tokens), 8) == reference.generate(prompt(num_tokens), 8)

    undisturbed = await answers(cluster)
    assert await answers(cluster, lambda: cluster.kill("expert-0-0")) == undisturbed
    await settle(cluster)

    def stop():
        pid = cluster.pids["expert-1-0"]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(pid, signal.SIGCONT)

    assert await answers(cluster, stop) == undisturbed
    await settle(cluster)
