"""The protocols of the tensor operations, and the opaque weights that an implementation packs for itself.

The dtype of the run is float32 or bfloat16; all activations of a process have it. Weights come as bfloat16, which both
represent exactly. Sums are taken in float32 and rounded once, to the dtype of the run; a float32 run never rounds to
bfloat16. `kernels/reference/text.py` defines every result.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.expanded import ExpandedContext
from kernels.reference.sampling import Shapes


class ExpertTensors(NamedTuple):
    """One routed expert as the checkpoint stores it: INT4, groups of 32 columns, symmetric."""

    gate_packed: Tensor  # [width, hidden / 8] i32
    gate_scale: Tensor  # [width, hidden / 32] bf16
    up_packed: Tensor  # [width, hidden / 8] i32
    up_scale: Tensor  # [width, hidden / 32] bf16
    down_packed: Tensor  # [hidden, width / 8] i32
    down_scale: Tensor  # [hidden, width / 32] bf16


class RoutedTokens(NamedTuple):
    """Tokens and the experts that the router chose for each; read-only.

    hidden        [tokens, hidden] f32 or bf16
    topk_ids      [tokens, top_k] i32, global expert ids, -1 where another shard holds the expert
    topk_weights  [tokens, top_k] f32
    """

    hidden: Tensor
    topk_ids: Tensor
    topk_weights: Tensor


@dataclass(frozen=True)
class LinearWeight:
    """A dense weight in the layout of the implementation that packed it. Only that implementation can read it."""

    shape: tuple[int, int]  # out, in
    nbytes: int


@dataclass(frozen=True)
class HeadWeight:
    """One dense weight per attention head, packed like a `LinearWeight`."""

    shape: tuple[int, int, int]  # heads, out, in
    nbytes: int


@dataclass(frozen=True)
class ExpertWeights:
    """The routed experts of one layer and shard, packed. An expert's local index is its place in the packing order."""

    num_experts: int
    hidden: int
    width: int
    nbytes: int


class MlaWeights(Protocol):
    """The weights of MLA in its absorbed form; linears [out, in], per-head ones [heads, out, in]."""

    @property
    def qkv_a(self) -> LinearWeight: ...  # [q_lora + kv_lora + rope, hidden]

    @property
    def q_a_norm(self) -> Tensor: ...  # [q_lora] bf16

    @property
    def q_b(self) -> LinearWeight: ...  # [heads * (nope + rope), q_lora]

    @property
    def kv_a_norm(self) -> Tensor: ...  # [kv_lora] bf16

    @property
    def key_absorbed(self) -> HeadWeight: ...  # [heads, kv_lora, nope]

    @property
    def value_up(self) -> HeadWeight: ...  # [heads, v, kv_lora]

    @property
    def o(self) -> LinearWeight: ...  # [hidden, heads * v]

    @property
    def inv_freq(self) -> Tensor: ...  # [rope / 2] f32

    @property
    def softmax_scale(self) -> float: ...


class Routing(NamedTuple):
    """How a router chooses and weighs; the arguments of `route`."""

    top_k: int
    num_groups: int
    topk_groups: int
    normalize: bool
    scale: float


class StepMlp(Protocol):
    """SwiGLU of a dense layer, or the shared expert."""

    @property
    def gate_up(self) -> LinearWeight: ...  # [2 * width, hidden]

    @property
    def down(self) -> LinearWeight: ...  # [hidden, width]


class StepRouter(Protocol):
    """Gate and bias of a layer's router."""

    @property
    def gate(self) -> Tensor: ...  # [experts, hidden] f32

    @property
    def bias(self) -> Tensor: ...  # [experts] f32


class StepLayer(Protocol):
    """One layer of a decode step, without its routed experts; no router: it has a dense MLP."""

    @property
    def index(self) -> int: ...

    @property
    def input_norm(self) -> Tensor: ...  # [hidden] bf16

    @property
    def attention(self) -> MlaWeights: ...

    @property
    def post_norm(self) -> Tensor: ...  # [hidden] bf16

    @property
    def mlp(self) -> StepMlp: ...

    @property
    def router(self) -> StepRouter | None: ...


class StepExperts(Protocol):
    """All routed experts of a model, in this process."""

    layers: dict[int, ExpertWeights]  # by layer

    @property
    def local_index(self) -> NDArray[np.int32]: ...  # [experts] place of each expert among the packed ones

    def counts_of(self, layer: int) -> NDArray[np.int64]:
        """Return the tokens that each packed expert of a layer has got; a step adds to them."""


class Kernels(Protocol):
    """All operations on one device, with one set of layouts; the functions of `kernels` document them."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...

    def silu_mul(self, gate_up: Tensor) -> Tensor: ...

    def rope(self, x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor: ...

    def write_latent(self, cache: Tensor, slots: Tensor, latent: Tensor, rope_key: Tensor) -> None: ...

    def norm_rope_store(
        self,
        cache: Tensor,
        slots: Tensor,
        latent: Tensor,
        rope_key: Tensor,
        weight: Tensor,
        eps: float,
        positions: Tensor,
        inv_freq: Tensor,
    ) -> None: ...

    def pack_linear(self, weight: Tensor) -> LinearWeight: ...

    def linear(self, x: Tensor, weight: LinearWeight, out_dtype: torch.dtype | None = None) -> Tensor: ...

    def pack_heads(self, weight: Tensor) -> HeadWeight: ...

    def head_linear(self, x: Tensor, weight: HeadWeight) -> Tensor: ...

    def route(
        self,
        hidden: Tensor,
        gate: Tensor,
        bias: Tensor,
        *,
        top_k: int,
        num_groups: int,
        topk_groups: int,
        normalize: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor]: ...

    def pack_experts(self, experts: Iterable[ExpertTensors | tuple[Tensor, ...]]) -> ExpertWeights: ...

    def expert_mlp(
        self,
        x: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        experts: ExpertWeights,
        out_dtype: torch.dtype = torch.float32,
    ) -> Tensor: ...

    def mla_decode(
        self,
        q_latent: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        softmax_scale: float,
    ) -> Tensor: ...

    def mla_prefill(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        block_table: Tensor,
        context_len: int,
        kv_b: LinearWeight,
        v_dim: int,
        softmax_scale: float,
        expanded: ExpandedContext | None = None,
    ) -> Tensor: ...

    def describe(self) -> dict[str, str]: ...


class SamplingKernels(Protocol):
    def draw(self, logits: Tensor, shapes: Shapes, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def log_totals(self, logits: Tensor) -> Tensor: ...


class VisionKernels(Protocol):
    """The vision tower's own operations; its others are PyTorch's on every device."""

    def vit_attention(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor: ...
