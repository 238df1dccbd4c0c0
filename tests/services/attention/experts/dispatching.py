"""What the tests of dispatch share: servers by shard and replica, and a connected client."""

import time
from contextlib import ExitStack, asynccontextmanager

import pytest
import torch

from services.attention.experts.experts import DispatchLimits, RemoteExperts
from services.checkpoint.placement import expert_placement
from services.model.checkpoint import Checkpoint
from tests.services.expert.serving import ServerThread, short_folder
from tests.waiting import until

TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "shared", "unix", "tcp", "sealed", "python"])


@asynccontextmanager
async def connected(model, addresses, transport, **limits):
    """A client of all shards, every replica connected."""
    async with opened(model, addresses, transport, **limits) as experts:
        await until(lambda: all(replica.live for calls in experts._shards for replica in calls.replicas))
        yield experts


@asynccontextmanager
async def opened(model, addresses, transport, **limits):
    """A client of all shards, one replica of each connected.

    transport  a name of the setting; "python": a Unix socket without native code; "sealed": tcp to servers that seal
    """
    experts = remote(model, addresses, transport, **limits)
    try:
        await experts.open()
        yield experts
    finally:
        await experts.close()


def remote(model, addresses, transport, tls=None, placement=None, **limits):
    """The same, not opened yet."""
    return RemoteExperts(
        addresses,
        placement or expert_placement(16, len(addresses)),
        checkpoint_digest=Checkpoint(model).digest(),
        epoch=time.time_ns(),
        transport={"python": "unix", "sealed": "tcp"}.get(transport, transport),
        native=transport != "python",
        limits=DispatchLimits(**{"open_s": 60, "deadline_s": 60, **limits}),
        tls=tls,
    )


def serve(stack: ExitStack, model, num_shards, num_replicas=1, **choices) -> list[list[ServerThread]]:
    """Server threads by shard and replica."""
    folder = short_folder(stack)
    return [
        [
            stack.enter_context(ServerThread(model, f"unix:{folder}/{shard}-{replica}", shard, num_shards, **choices))
            for replica in range(num_replicas)
        ]
        for shard in range(num_shards)
    ]


def addresses(servers) -> list[list[str]]:
    return [[server.address for server in of_shard] for of_shard in servers]


def dispatch(experts, work, step=0, micro_batch=0, layer=2):
    return experts.dispatch(step, layer, micro_batch, work.hidden, work.topk_ids, work.topk_weights)


def assert_same(found, expected) -> None:
    """Equal up to the order of fp32 sums."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


async def waiting(awaitable):
    """A coroutine of an awaitable, for tasks."""
    return await awaitable
