"""`python -m services.expert`: one replica of one expert shard."""

import asyncio
import logging
import time

import torch
from prometheus_client import REGISTRY

import kernels
from protos import expert_pb2
from services.checkpoint.placement import expert_placement
from services.expert.compute import Compute, native_shard
from services.expert.metrics import LOAD_SECONDS, WEIGHT_BYTES, TrafficCollector
from services.expert.servicer import ExpertServicer, add_expert_service
from services.expert.settings import ExpertSettings
from services.expert.wire_socket import wire_socket
from services.model.checkpoint import Checkpoint
from services.model.device import torch_device
from services.model.expert_load import ExpertLoadCollector
from services.model.expert_shard import ExpertShard, load_expert_shard
from services.model.memory import check_room, expert_bytes
from services.runtime.errors import CheckpointError
from services.runtime.liveness import LIVENESS
from services.runtime.server import run, serve
from services.runtime.settings import load
from services.runtime.tls import tls_files
from services.wire.introductions import Introductions
from services.wire.library import LIBRARY
from services.wire.places import wire_places

NAME = "expert"
log = logging.getLogger(NAME)


async def main(settings: ExpertSettings) -> None:
    """Load the shard, then serve it until SIGTERM."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    shard, digest = load_shard(settings)
    compute = Compute(shard, native_shard(shard, torch.get_num_threads()))
    REGISTRY.register(TrafficCollector(compute.read_traffic))
    REGISTRY.register(ExpertLoadCollector(shard))
    introductions = Introductions()
    seals = tls_files(settings) is not None
    sockets = [wire_socket(place, compute, introductions, seals=seals) for place in wire_places(settings, seals=seals)]
    description = expert_pb2.DescribeShardResponse(
        shard=settings.shard,
        num_shards=settings.num_shards,
        expert_ids=shard.expert_ids,
        checkpoint_digest=digest,
    )
    servicer = ExpertServicer(description, compute, introductions, seals=seals)

    # Before gRPC answers: a caller that asks Describe must find every transport.
    for wire in sockets:
        wire.start()
        description.wire_port = wire.port or description.wire_port
        description.raw_socket = wire.path or description.raw_socket

    async def drain() -> None:
        await asyncio.gather(servicer.drain(), *(wire.stop(settings.drain_s) for wire in sockets))

    await serve(settings, NAME, lambda server: add_expert_service(servicer, server), on_drain=drain)


def load_shard(settings: ExpertSettings) -> tuple[ExpertShard, bytes]:
    """The weights of this shard, and the digest of the checkpoint they are from."""
    started = time.perf_counter()
    device = torch_device(settings.device)
    checkpoint = Checkpoint(settings.model)
    num_experts = checkpoint.config.text.n_routed_experts
    try:
        placement = expert_placement(num_experts, settings.num_shards)
    except ValueError as error:
        raise CheckpointError(f"MOONSHARD_NUM_SHARDS={settings.num_shards}: {error}") from error
    own_ids = placement[settings.shard]
    needs = {"experts": expert_bytes(checkpoint.config.text, len(own_ids))}
    check_room(f"expert shard {settings.shard} of {settings.num_shards}", needs, device)
    LIVENESS.expect(sum(needs.values()))
    shard = load_expert_shard(checkpoint, own_ids, device)
    digest = checkpoint.digest()
    seconds = time.perf_counter() - started
    LOAD_SECONDS.set(seconds)
    WEIGHT_BYTES.set(shard.nbytes)
    log.info(
        "experts loaded",
        extra={
            "shard": settings.shard,
            "num_shards": settings.num_shards,
            "experts": len(shard.expert_ids),
            "layers": len(shard.layer_ids),
            "bytes_read": checkpoint.bytes_read,
            "packed_bytes": shard.nbytes,
            "seconds": round(seconds, 3),
            "kernels": kernels.describe(device)["expert_mlp"],
            "threads": torch.get_num_threads(),
            "native_wire": LIBRARY is not None,
        },
    )
    return shard, digest


if __name__ == "__main__":
    arguments = load(ExpertSettings)
    run(arguments, NAME, lambda: main(arguments))
