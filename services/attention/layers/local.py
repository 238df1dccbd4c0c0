"""A contiguous range of layers with its latent KV, in this process."""

import asyncio
from collections.abc import Callable, Sequence

from torch import Tensor

from services.attention.experts.experts import Experts
from services.attention.layers.batch import Batch
from services.attention.layers.cached_blocks import CachedBlocks
from services.attention.layers.cuda_graphs import Layers, StepGraphs, without_waiting
from services.attention.layers.formulas import forward_layers
from services.attention.layers.handoff import Handoff
from services.attention.layers.peers import Peers
from services.attention.layers.weights import LayerWeights
from services.checkpoint.config import TextConfig
from services.model.device import to_device


class LocalLayers(CachedBlocks):
    """The layers of this process. Owns the latent KV, on the device that computes.

    cache   [num_blocks, layers, block_tokens, latent_dim]; one block more where steps are recorded. In FP8 the last
            dimension is bytes (`kernels/reference/latent_fp8.py`)
    graphs  makes the recorded steps from the layers; None: every step is launched anew
    """

    def __init__(
        self,
        config: TextConfig,
        layers: Sequence[LayerWeights],
        cache: Tensor,
        experts: Experts,
        latent_norm_eps: float,
        handoff: Handoff | None,
        peers: Peers,
        io_loop: asyncio.AbstractEventLoop,
        graphs: Callable[[Layers], StepGraphs] | None = None,
    ) -> None:
        super().__init__(cache, handoff, peers, io_loop)
        self._config = config
        self._layers = layers
        self._experts = experts
        self._latent_norm_eps = latent_norm_eps
        self._graphs = None if graphs is None else graphs(lambda *inputs: without_waiting(self._launch(0, 0, *inputs)))

    async def forward(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        hidden = to_device(hidden, self._cache.device)
        if self._graphs is not None and (replayed := self._graphs.run(batch, hidden)) is not None:
            return replayed
        return await self._launch(step, micro_batch, batch.to(self._cache.device), hidden)

    async def _launch(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        return await forward_layers(
            hidden,
            batch,
            self._layers,
            self._cache,
            self._config,
            self._experts,
            step=step,
            micro_batch=micro_batch,
            latent_norm_eps=self._latent_norm_eps,
        )

    @property
    def is_connected(self) -> bool:
        return True

    def take_loss(self) -> bool:
        return False
