"""Puts a process together from its settings: checkpoint, layers, experts, store, and the engine or the worker."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import torch

import kernels
from kernels.reference import latent_fp8
from services.attention.constraint.requests import Constraints
from services.attention.engine.engine import Engine
from services.attention.engine.forward import Forward
from services.attention.engine.media import MediaSource
from services.attention.engine.pool import BlockPool
from services.attention.engine.roster import Roster
from services.attention.engine.spans import StepSpans
from services.attention.experts.experts import DispatchLimits, Experts, LocalExperts, RemoteExperts
from services.attention.layers import frames
from services.attention.layers.cuda_graphs import Layers, StepGraphs, record_cuda
from services.attention.layers.handoff import Handoff
from services.attention.layers.local import LayerShard, LocalLayers
from services.attention.layers.remote import RemoteLayers
from services.attention.layers.service import LayerServicer, LayerWorker
from services.attention.layers.weights import load_ends, load_layers
from services.attention.requests import Limits
from services.attention.settings import AttentionSettings
from services.checkpoint.block_names import layout_fingerprint
from services.checkpoint.markers import Marker
from services.checkpoint.media_names import model_name
from services.checkpoint.placement import expert_placement, layer_ranges
from services.checkpoint.vocabulary import load_tokens
from services.model.checkpoint import Checkpoint
from services.model.device import torch_device
from services.model.expert_shard import load_expert_shard
from services.model.memory import check_room, edge_bytes, expert_bytes, layer_bytes
from services.model.text_weights import check_complete
from services.runtime.blobs import BlobStore
from services.runtime.tls import tls_files
from services.runtime.tracing import Tracer

log = logging.getLogger(__name__)

SHARD_CHECK_S = 0.05

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class EngineReplica:
    """Shard 0: the engine, and what its service needs to know."""

    engine: Engine
    constraints: Constraints
    limits: Limits
    experts: Experts
    further: list[RemoteLayers]
    store: BlobStore | None

    async def open(self, timeout_s: float) -> None:
        """Starts the thread and connects it to its experts and further shards."""
        self.engine.start()
        await self.engine.run(self.experts.open())
        for shard in self.further:
            await self.engine.run(shard.open(timeout_s))

    async def serving(self) -> AsyncIterator[bool]:
        """Whether every further shard is connected, as it changes."""
        able = True
        while True:
            await asyncio.sleep(SHARD_CHECK_S)
            if able != all(shard.is_connected for shard in self.further):
                able = not able
                yield able

    async def close(self) -> None:
        for shard in self.further:
            await self.engine.run(shard.close())
        await self.engine.run(self.experts.close())
        await asyncio.to_thread(self.engine.stop, 10.0)
        await asyncio.to_thread(self.constraints.close)
        if self.store is not None:
            await self.store.close()


@dataclass(frozen=True)
class FurtherShard:
    """Shard 1, 2, ...: layers that an engine elsewhere drives."""

    servicer: LayerServicer
    worker: LayerWorker
    experts: Experts
    store: BlobStore | None

    async def open(self) -> None:
        self.worker.start()
        await self.worker.run(self.experts.open)

    async def close(self) -> None:
        await self.worker.run(self.experts.close)
        await asyncio.to_thread(self.worker.stop)
        if self.store is not None:
            await self.store.close()


class Assembly:
    """Reads the checkpoint of one attention process; to be used once, on the service's event loop."""

    def __init__(self, settings: AttentionSettings, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._dtype = DTYPES[settings.dtype]
        self._device = torch_device(settings.device)
        self._checkpoint = Checkpoint(settings.model)
        check_complete(self._checkpoint)
        self._config = self._checkpoint.config.text
        self._digest = self._checkpoint.digest()
        self._ranges = layer_ranges(self._config.num_hidden_layers, settings.num_shards)
        self._layers = self._ranges[settings.shard]
        self._check_room()
        self._store = self._open_store()

    def replica(self) -> EngineReplica:
        """The engine of shard 0."""
        settings, config = self._settings, self._config
        experts = self._experts()
        further = [
            RemoteLayers(
                address,
                self._hello(shard),
                self._dtype,
                config.hidden_size,
                settings.expert_deadline_s,
                tls_files(settings),
            )
            for shard, address in enumerate(settings.further_shards, 1)
        ]
        shards: list[LayerShard] = [self._local_layers(experts), *further]
        forward = Forward(
            config,
            load_ends(self._checkpoint, self._device),
            shards,
            dtype=self._dtype,
            block_tokens=settings.block_tokens,
            num_micro_batches=settings.micro_batches if settings.experts else 1,
            micro_batch_tokens=settings.micro_batch_tokens,
        )
        roster = Roster(
            BlockPool(settings.num_blocks), settings.block_tokens, settings.max_running, settings.max_waiting
        )
        tokens = load_tokens(settings.model, config.vocab_size)
        limits = Limits(
            names_root=self._fingerprint(range(config.num_hidden_layers)),
            vocab_size=config.vocab_size,
            block_tokens=settings.block_tokens,
            num_blocks=settings.num_blocks,
            max_positions=config.max_position_embeddings,
            max_waiting=settings.max_waiting,
            media_token_id=tokens.marker_ids[Marker.MEDIA_PAD],
            takes_media=self._store is not None,
        )
        self._report()
        spans = StepSpans(self._tracer, experts, settings.trace_layer_ratio) if self._tracer is not None else None
        engine = Engine(settings.role, forward, shards, roster, settings.step_tokens, self._media(), spans)
        constraints = Constraints(tokens)
        return EngineReplica(engine, constraints, limits, experts, further, self._store)

    def _check_room(self) -> None:
        settings, text = self._settings, self._config
        width, kv_dtype = self._token()
        kv_tokens = settings.num_blocks * settings.block_tokens
        needs = {
            "layers": layer_bytes(text, self._layers),
            "latent KV": kv_tokens * len(self._layers) * width * kv_dtype.itemsize,
        }
        if settings.shard == 0:
            needs["embedding and head"] = edge_bytes(text)
        if not settings.expert_addresses:
            needs["experts"] = expert_bytes(text, text.n_routed_experts)
        check_room(f"attention shard {settings.shard} of {settings.num_shards}", needs, self._device)

    def further_shard(self) -> FurtherShard:
        """The layers of another shard."""
        experts = self._experts()
        worker = LayerWorker()
        layers = self._local_layers(experts)
        self._report()
        servicer = LayerServicer(
            layers, worker, self._hello(self._settings.shard), self._dtype, self._config.hidden_size
        )
        return FurtherShard(servicer, worker, experts, self._store)

    def _local_layers(self, experts: Experts) -> LocalLayers:
        settings, config = self._settings, self._config
        # With remote experts a step waits in every layer and is not recorded; padding needs a block for itself.
        records = self._device.type == "cuda" and not settings.experts
        num_blocks = settings.num_blocks + (1 if records else 0)
        width, kv_dtype = self._token()
        shape = num_blocks, len(self._layers), settings.block_tokens, width
        hidden_like = torch.empty(0, config.hidden_size, dtype=self._dtype, device=self._device)

        def graphs(layers: Layers) -> StepGraphs:
            return StepGraphs(layers, record_cuda, hidden_like, settings.block_tokens, settings.num_blocks)

        handoff = Handoff(self._store, self._fingerprint(self._layers)) if self._store is not None else None
        return LocalLayers(
            config,
            load_layers(self._checkpoint, self._layers, self._device),
            # Zeroed memory is not touched before it is used, so an idle pool costs nothing.
            torch.zeros(shape, dtype=kv_dtype, device=self._device),
            experts,
            settings.latent_norm_eps,
            handoff,
            asyncio.get_running_loop(),
            graphs if records else None,
        )

    def _experts(self) -> Experts:
        num_experts = self._config.n_routed_experts
        addresses = self._settings.expert_addresses
        if not addresses:
            return LocalExperts(load_expert_shard(self._checkpoint, range(num_experts), self._device))
        return RemoteExperts(
            addresses,
            expert_placement(num_experts, len(addresses)),
            checkpoint_digest=self._digest,
            epoch=secrets.randbits(63),
            transport=self._settings.expert_transport,
            name=self._settings.expert_name,
            discover_s=self._settings.discover_s,
            tls=tls_files(self._settings),
            limits=DispatchLimits(
                deadline_s=self._settings.expert_deadline_s,
                open_s=self._settings.startup_s,
            ),
        )

    def _media(self) -> MediaSource | None:
        if self._store is None:
            return None
        name, width = model_name(self._digest), self._config.hidden_size
        return MediaSource(self._store, name, width, asyncio.get_running_loop())

    def _open_store(self) -> BlobStore | None:
        settings = self._settings
        if not settings.store:
            return None
        return BlobStore(
            settings.store,
            ttl_s=settings.kv_ttl_s,
            timeout_s=settings.store_timeout_s,
            access=settings.store_access,
        )

    def _token(self) -> tuple[int, torch.dtype]:
        """Width and dtype of a token's latent KV in one layer."""
        config = self._config
        if self._settings.kv_dtype == "fp8":
            return latent_fp8.token_bytes(config.kv_lora_rank, config.qk_rope_head_dim), torch.uint8
        return config.latent_dim, self._dtype

    def _fingerprint(self, layers: range) -> bytes:
        settings = self._settings
        return layout_fingerprint(
            checkpoint_digest=self._digest,
            layers=layers,
            # FP8 of a float32 run has other numbers than that of a bfloat16 run, though equal sizes.
            dtype=settings.dtype if settings.kv_dtype == "auto" else f"{settings.kv_dtype} of {settings.dtype}",
            block_tokens=settings.block_tokens,
            latent_dim=self._token()[0],
            latent_norm_eps=settings.latent_norm_eps,
        )

    def _hello(self, shard: int) -> bytes:
        # The fingerprint of that shard's layers: an engine never drives another shard than it means to.
        settings = self._settings
        return frames.HELLO.pack(
            secrets.randbits(63),
            settings.num_blocks,
            settings.block_tokens,
            self._dtype.itemsize,
            self._fingerprint(self._ranges[shard]),
        )

    def _report(self) -> None:
        width, kv_dtype = self._token()
        log.info(
            "weights are loaded",
            extra={
                "bytes_read": self._checkpoint.bytes_read,
                "layers": f"{self._layers.start}..{self._layers.stop - 1}",
                "experts": "remote" if self._settings.experts else "local",
                "kv_dtype": self._settings.kv_dtype,
                "kv_token_bytes": len(self._layers) * width * kv_dtype.itemsize,
                "kernels": kernels.describe(self._device),
            },
        )
