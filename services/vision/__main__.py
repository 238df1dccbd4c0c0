"""`python -m services.vision`: one vision replica."""

import grpc.aio
import torch

from protos.vision_pb2_grpc import add_VisionServiceServicer_to_server
from services.runtime.server import run, serve
from services.runtime.settings import load
from services.runtime.store_check import check_store
from services.vision.assembly import assemble
from services.vision.settings import VisionSettings

NAME = "vision"


async def main(settings: VisionSettings) -> None:
    """Load tower and projector, then serve until a signal ends the process."""
    torch.set_num_threads(settings.threads)
    await check_store(settings.store, settings.store_access)
    replica = assemble(settings)

    def add_services(server: grpc.aio.Server) -> None:
        add_VisionServiceServicer_to_server(replica.servicer, server)

    try:
        await serve(settings, NAME, add_services, until=replica.batcher.run)
    finally:
        await replica.close()


if __name__ == "__main__":
    arguments = load(VisionSettings)
    run(arguments, NAME, lambda: main(arguments))
