"""A contiguous range of layers with its latent KV, in this process."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from kernels import ExpandedContext, decode_step
from services.attention.experts.experts import Experts, LocalExperts
from services.attention.layers.batch import Batch
from services.attention.layers.cached_blocks import CachedBlocks
from services.attention.layers.cuda_graphs import Layers, StepGraphs, without_waiting
from services.attention.layers.expanded import ExpandedPrompts
from services.attention.layers.formulas import forward_layers, routing
from services.attention.layers.handoff import Handoff
from services.attention.layers.peers import Peers
from services.attention.layers.weights import LayerWeights
from services.checkpoint.config import TextConfig
from services.model.device import to_device

# A prompt whose client left is forgotten after so long without a chunk of any prompt.
IDLE_S: Final = 30.0


class LocalLayers(CachedBlocks):
    """The layers of this process. Owns the latent KV, on the device that computes.

    cache   [num_blocks, layers, block_tokens, latent_dim]; one block more where steps are recorded. In FP8 the last
            dimension is bytes (`kernels/reference/latent_fp8.py`)
    graphs  makes the recorded steps from the layers; None: every step is launched anew
    expanded  keeps keys and values of running prompts; None: every chunk projects its whole context
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
        expanded: ExpandedPrompts | None = None,
    ) -> None:
        super().__init__(cache, handoff, peers, io_loop)
        self._config = config
        self._layers = layers
        self._experts = experts
        self._latent_norm_eps = latent_norm_eps
        self._expanded = expanded
        self._idle: asyncio.TimerHandle | None = None
        # A step of decode rows is one native call where all of it is in the process, on a CPU with native kernels.
        self._decode_step = (
            decode_step(
                layers,
                experts.shard,
                cache,
                routing(config),
                eps=config.rms_norm_eps,
                latent_eps=latent_norm_eps,
            )
            if isinstance(experts, LocalExperts)
            else None
        )
        self._graphs = None if graphs is None else graphs(lambda *inputs: without_waiting(self._launch(0, 0, *inputs)))

    async def forward(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        hidden = to_device(hidden, self._cache.device)
        if self._graphs is not None and (replayed := self._graphs.run(batch, hidden)) is not None:
            return replayed
        if self._decode_step is not None and not batch.segments:
            return self._decode_step(hidden, batch.slots, batch.positions, batch.block_tables, batch.context_lens)
        on_device = batch.to(self._cache.device)
        if self._expanded is None or not batch.segments:
            return await self._launch(step, micro_batch, on_device, hidden)
        try:
            return await self._launch(step, micro_batch, on_device, hidden, self._expanded.begin(batch.segments))
        finally:
            # After an error too: no later chunk may come to free the memory.
            self._expanded.end(batch.segments)
            self._forget_when_idle()

    def forget_prompts(self) -> None:
        """Let go of what is kept of running prompts."""
        if self._expanded is not None:
            self._expanded.clear()

    def _forget_when_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._expanded:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.forget_prompts)

    async def _launch(
        self,
        step: int,
        micro_batch: int,
        batch: Batch,
        hidden: Tensor,
        expanded: Sequence[Sequence[ExpandedContext] | None] = (),
    ) -> Tensor:
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
            expanded=expanded,
        )

    @property
    def is_connected(self) -> bool:
        return True

    def take_loss(self) -> bool:
        return False
