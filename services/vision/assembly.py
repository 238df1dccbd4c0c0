"""Assembles a vision replica from its settings: weights, decoders, store and service."""

import logging
from dataclasses import dataclass, replace

import torch

from services.checkpoint.media_names import model_name
from services.model.checkpoint import Checkpoint
from services.model.device import torch_device
from services.runtime.blobs import BlobStore
from services.vision.batching import Batcher
from services.vision.catalog import Catalog
from services.vision.decoder_process import DecoderOptions
from services.vision.decoders import DecoderPool
from services.vision.encoder import MediaEncoder
from services.vision.grid import load_media_config
from services.vision.model import VisionModel
from services.vision.service import VisionServicer
from services.vision.settings import VisionSettings
from services.vision.weights import load_vision

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replica:
    """The service, with its batcher, decoders and store, which must be closed."""

    servicer: VisionServicer
    batcher: Batcher
    decoders: DecoderPool
    store: BlobStore

    async def close(self) -> None:
        """End threads, processes and connections."""
        self.batcher.close()
        await self.decoders.close()
        await self.store.close()


def assemble(settings: VisionSettings) -> Replica:
    """Load tower and projector. Raises CheckpointError if the checkpoint has none, or of another form."""
    checkpoint = Checkpoint(settings.model)
    vision, weights = load_vision(checkpoint, DTYPES[settings.dtype], torch_device(settings.device))
    config = load_media_config(settings.model, vision)
    log.info("weights are loaded", extra={"bytes_read": checkpoint.bytes_read, "dtype": settings.dtype})
    context_tokens = checkpoint.config.text.max_position_embeddings
    limits = replace(settings.limits, max_tokens=min(settings.max_tokens, context_tokens))
    store = BlobStore(
        settings.store,
        ttl_s=settings.media_ttl_s,
        timeout_s=settings.store_timeout_s,
        access=settings.store_access,
        wait_s=settings.store_wait_s,
    )
    variant = f"{config.to_json()} {settings.dtype} image_repair={settings.image_repair}"
    catalog = Catalog(store, model_name(checkpoint.digest()), variant)
    options = DecoderOptions(
        limits, config, settings.decoder_memory_bytes, settings.decode_s, repair=settings.image_repair
    )
    decoders = DecoderPool(settings.decoders, options)
    batcher = Batcher(VisionModel(vision, weights), vision.patch_size, settings.batch_patches)
    max_videos = max(1, settings.decoders - 1)
    encoder = MediaEncoder(catalog, decoders, batcher, max_media=settings.max_media, max_videos=max_videos)
    return Replica(VisionServicer(encoder, limits, settings.max_upload_bytes), batcher, decoders, store)
