"""Builds a process from its settings: checkpoint, layers, experts, store, and the engine or the worker."""

import asyncio
import logging
import math
import secrets
from collections.abc import Sequence

import torch

import kernels
from services.attention.constraint.recipe_store import RecipeStore
from services.attention.constraint.requests import Constraints
from services.attention.engine.engine import Engine
from services.attention.engine.fetcher import Fetcher
from services.attention.engine.forward import Forward
from services.attention.engine.media import MediaSource
from services.attention.engine.pool import BlockPool
from services.attention.engine.publisher import Publisher
from services.attention.engine.roster import Roster
from services.attention.engine.spans import StepSpans
from services.attention.engine.speculation import Speculation
from services.attention.engine.store_room import StoreRoom
from services.attention.experts.experts import DispatchLimits, Experts, LocalExperts, RemoteExperts
from services.attention.layers.cuda_graphs import Layers, StepGraphs, record_cuda
from services.attention.layers.expanded import ExpandedPrompts
from services.attention.layers.handoff import Handoff
from services.attention.layers.local import LocalLayers
from services.attention.layers.offers import BlockServicer
from services.attention.layers.peers import Peers
from services.attention.layers.remote import RemoteLayers
from services.attention.layers.service import LayerServicer, LayerWorker
from services.attention.layers.shard import LayerShard
from services.attention.layers.weights import load_ends, load_layers
from services.attention.layout import KvLayout
from services.attention.memory import plan_blocks
from services.attention.replica import EngineReplica, FurtherShard
from services.attention.requests import ReplicaLimits
from services.attention.settings import AttentionSettings
from services.checkpoint.markers import Marker
from services.checkpoint.media_names import model_name
from services.checkpoint.placement import expert_placement
from services.checkpoint.vocabulary import load_tokens
from services.model.checkpoint import Checkpoint
from services.model.device import torch_device
from services.model.expert_shard import load_expert_shard
from services.model.memory import device_room
from services.model.text_weights import check_complete
from services.runtime.blobs import BlobStore
from services.runtime.tls import tls_files
from services.runtime.tracing import Tracer
from services.wire.places import wire_places

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Assembly:
    """Reads the checkpoint of one attention process. Used once, on the service's event loop."""

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
        self._layout = KvLayout(settings, self._config, self._digest, self._dtype)
        self._layers = self._layout.layers_of(settings.shard)
        self._num_blocks = plan_blocks(settings, self._config, self._layout, self._device)
        self._store = self._open_store()

    def replica(self) -> EngineReplica:
        """Build shard 0 with its engine."""
        settings, config = self._settings, self._config
        experts = self._experts()
        further = [
            RemoteLayers(
                address,
                self._layout.hello(shard, self._num_blocks),
                self._dtype,
                config.hidden_size,
                settings.expert_deadline_s,
                tls_files(settings),
                settings.expert_transport,
            )
            for shard, address in enumerate(settings.further_shards, 1)
        ]
        local = self._local_layers(experts)
        shards: list[LayerShard] = [local, *further]
        forward = Forward(
            config,
            load_ends(self._checkpoint, self._device),
            shards,
            dtype=self._dtype,
            block_tokens=settings.block_tokens,
            num_micro_batches=settings.micro_batches if settings.experts else 1,
            micro_batch_tokens=settings.micro_batch_tokens,
        )
        tokens = load_tokens(settings.model, config.vocab_size)
        limits = ReplicaLimits(
            names_root=self._layout.fingerprint(range(config.num_hidden_layers)),
            vocab_size=config.vocab_size,
            block_tokens=settings.block_tokens,
            num_blocks=self._num_blocks,
            max_positions=config.max_position_embeddings,
            max_waiting=settings.max_waiting,
            media_token_id=tokens.marker_ids[Marker.MEDIA_PAD],
            takes_media=self._store is not None,
            further_shards=settings.further_shards,
        )
        self._report()
        room = StoreRoom(self._store, self._layout.block_bytes(config.num_hidden_layers))
        engine = self._engine(forward, local, shards, room, experts)
        block_servicer = BlockServicer(local.offers, self._layout.fingerprint(self._layers), engine.release)
        constraints = Constraints(tokens, shared=RecipeStore(self._store) if self._store else None)
        return EngineReplica(engine, constraints, limits, experts, further, block_servicer, room, self._store)

    def _engine(
        self,
        forward: Forward,
        local: LocalLayers,
        shards: Sequence[LayerShard],
        room: StoreRoom,
        experts: Experts,
    ) -> Engine:
        settings, tracer = self._settings, self._tracer
        pool = BlockPool(self._num_blocks)
        return Engine(
            settings.role,
            forward,
            shards,
            Roster(pool, settings.block_tokens, settings.max_running, settings.max_waiting),
            settings.step_tokens,
            Fetcher(shards, settings.block_tokens, self._media(), local.release),
            Publisher(shards, room, settings.block_tokens),
            settings.handoff_hold_s,
            Speculation(self._draft_tokens(), settings.block_tokens),
            StepSpans(tracer, experts, settings.trace_layer_ratio) if tracer is not None else None,
        )

    def _draft_tokens(self) -> int:
        """Return the most tokens of a draft: none where the bits of a row depend on the other rows of a step."""
        native = kernels.describe(self._device)["linear"].startswith("native")
        return self._settings.draft_tokens if self._device.type == "cpu" and native else 0

    def further_shard(self) -> FurtherShard:
        """Build shard 1, 2, ..., which has layers only."""
        experts = self._experts()
        worker = LayerWorker()
        layers = self._local_layers(experts)
        self._report()
        seals = tls_files(self._settings) is not None
        servicer = LayerServicer(
            layers,
            worker,
            self._layout.hello(self._settings.shard, self._num_blocks),
            self._dtype,
            self._config.hidden_size,
            wire_places(self._settings, seals=seals),
            seals=seals,
        )
        block_servicer = BlockServicer(layers.offers, self._layout.fingerprint(self._layers), None)
        return FurtherShard(servicer, worker, experts, block_servicer, self._store)

    def _local_layers(self, experts: Experts) -> LocalLayers:
        settings, config = self._settings, self._config
        # With remote experts a step waits in every layer and is not recorded. Padding rows need a block of their own.
        records = self._device.type == "cuda" and not settings.experts
        num_blocks = self._num_blocks + (1 if records else 0)
        shape = num_blocks, len(self._layers), settings.block_tokens, self._layout.width
        hidden_like = torch.empty(0, config.hidden_size, dtype=self._dtype, device=self._device)

        def graphs(layers: Layers) -> StepGraphs:
            return StepGraphs(layers, record_cuda, hidden_like, settings.block_tokens, self._num_blocks)

        fingerprint = self._layout.fingerprint(self._layers)
        return LocalLayers(
            config,
            load_layers(self._checkpoint, self._layers, self._device),
            # The system gives zeroed memory only when it is written, so an idle pool costs nothing.
            torch.zeros(shape, dtype=self._layout.kv_dtype, device=self._device),
            experts,
            settings.latent_norm_eps,
            Handoff(self._store, fingerprint) if self._store is not None else None,
            Peers(fingerprint, tls_files(settings)),
            asyncio.get_running_loop(),
            graphs if records else None,
            self._expanded() if self._device.type == "cpu" else None,
        )

    def _expanded(self) -> ExpandedPrompts:
        # Weights are loaded by now; blocks get their memory when they are written.
        blocks = self._num_blocks * self._layout.block_bytes(len(self._layers))
        left = max(0, device_room(self._device).num_bytes - blocks) // 2
        widths = [self._config.expanded_dim for _ in self._layers]
        return ExpandedPrompts(widths, self._dtype, min(self._settings.expanded_bytes, left))

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
                open_s=math.inf if self._settings.startup_s is None else self._settings.startup_s,
            ),
        )

    def _media(self) -> MediaSource | None:
        if self._store is None:
            return None
        name, width = model_name(self._digest), self._config.hidden_size
        return MediaSource(self._store, name, width, asyncio.get_running_loop(), self._settings.store_wait_s)

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

    def _report(self) -> None:
        token_bytes = self._layout.block_bytes(len(self._layers)) // self._settings.block_tokens
        log.info(
            "weights are loaded",
            extra={
                "bytes_read": self._checkpoint.bytes_read,
                "layers": f"{self._layers.start}..{self._layers.stop - 1}",
                "experts": "remote" if self._settings.experts else "local",
                "kv_dtype": self._settings.kv_dtype,
                "kv_token_bytes": token_bytes,
                "kv_blocks": self._num_blocks,
                "kernels": kernels.describe(self._device),
            },
        )
