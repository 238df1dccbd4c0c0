"""The routed experts as the bench times them: one layer's 384 on one GPU, or a shard's 48 of them.

The weights of a layer are 9.5 GB, so they need no further sets.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels import roofline
from kernels.interface import ExpertWeights, Kernels
from kernels.roofline import EXPERTS, HIDDEN, TOP_K, WIDTH
from tests.bench.gpu_kernels.case import Case, Plan, bf16
from tests.bench.gpu_kernels.checks import random_expert
from tests.bench.gpu_kernels.public_int4 import TILES, PublicExperts
from tests.bench.gpu_kernels.timing import SETS, Run

SHARD = EXPERTS // 8
MOST_ACTIVE = 400  # calls of `_weight_int4pack_mm` in a row


def cases(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    """Every expert here, uniform and Zipf routing; then one shard of eight."""
    device = torch.get_default_device()
    plain = [random_expert(device, HIDDEN, WIDTH) for _ in range(EXPERTS)]
    experts = kernels.pack_experts(plain)
    public = PublicExperts(plain, kernels)
    tinygemm = _tinygemm(plain)
    del plain
    for tokens in (*plan.decode, *plan.prefill):
        if tokens in plan.prefill:
            tinygemm = None  # 10 GB
        x, weights = bf16(SETS, tokens, HIDDEN), torch.rand(tokens, TOP_K)
        ids = torch.stack([uniform_routing(tokens) for _ in range(SETS)])
        contenders: dict[str, Run] = {"ours": partial(_experts, kernels, x, ids, weights, experts)}
        for tiles in TILES[: plan.public_tiles]:
            name = f"public-style Triton, {tiles.rows} x {tiles.columns}"
            contenders[name] = partial(_public, public, x, ids, weights, tiles)
        if tinygemm is not None and tokens <= MOST_ACTIVE // TOP_K // SETS:
            contenders["_weight_int4pack_mm for each expert, routing known"] = _each_expert(tinygemm, x, ids, weights)
        if tokens in plan.prefill and device.type == "cuda" and _free_bytes(device) > bf16_bytes() + (16 << 30):
            contenders["bf16 weights, torch._grouped_mm"] = _grouped_products(x, ids, weights)
        yield _case(f"expert_mlp, {tokens} tokens", ids, contenders)
    for tokens in plan.decode:
        x, weights = bf16(SETS, tokens, HIDDEN), torch.rand(tokens, TOP_K)
        ids = torch.stack([zipf_routing(tokens) for _ in range(SETS)])
        ours = partial(_experts, kernels, x, ids, weights, experts)
        yield _case(f"expert_mlp, {tokens} tokens, Zipf", ids, {"ours": ours})
    del public, tinygemm, experts
    yield from _shard_cases(kernels, plan)


def _shard_cases(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    """One of eight shards: every token of eight attention GPUs, the assignments of the other shards left out."""
    experts = kernels.pack_experts(random_expert(torch.get_default_device(), HIDDEN, WIDTH) for _ in range(SHARD))
    for tokens in (*(8 * rows for rows in plan.decode), *plan.prefill):
        x, weights = bf16(SETS, tokens, HIDDEN), torch.rand(tokens, TOP_K)
        ids = torch.stack([uniform_routing(tokens) for _ in range(SETS)])
        ids = torch.where(ids < SHARD, ids, -1)
        ours = partial(_experts, kernels, x, ids, weights, experts)
        yield _case(f"expert_mlp, shard of {SHARD}, {tokens} tokens", ids, {"ours": ours})


def _case(name: str, ids: Tensor, contenders: dict[str, Run]) -> Case:
    """The floor is that of these very ids, the mean over the sets."""
    tokens = ids.shape[1]
    active = sum(len(one[one >= 0].unique()) for one in ids) / len(ids)
    assignments = int((ids >= 0).sum()) / len(ids)
    return Case(name, (roofline.routed(tokens, active, assignments), roofline.combine(tokens, assignments)), contenders)


def _experts(kernels: Kernels, x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, i: int) -> Tensor:
    return kernels.expert_mlp(x[i], ids[i], weights, experts)


def _public(public: PublicExperts, x: Tensor, ids: Tensor, weights: Tensor, tiles: object, i: int) -> Tensor:
    return public.mlp(x[i], ids[i], weights, tiles)  # type: ignore[arg-type]


Packed = tuple[Tensor, Tensor]
"""Words and scales with zero points as `_weight_int4pack_mm` takes them."""


def _tinygemm(experts: list[tuple[Tensor, ...]]) -> list[tuple[Packed, Packed, Packed]] | None:
    """Gate, up and down of every expert for PyTorch's own INT4 product; None on a CPU."""
    if not experts[0][0].is_cuda:
        return None

    def packed(words: Tensor, scale: Tensor) -> Packed:
        bytes_ = words.view(torch.uint8)
        swapped = (bytes_ << 4) | (bytes_ >> 4)  # it has the first of two weights in the high half
        scales = torch.stack([scale, torch.zeros_like(scale)], dim=-1).transpose(0, 1).contiguous()
        return torch._convert_weight_to_int4pack(swapped, 8), scales

    return [(packed(*e[0:2]), packed(*e[2:4]), packed(*e[4:6])) for e in experts]


def _each_expert(experts: list[tuple[Packed, Packed, Packed]], x: Tensor, ids: Tensor, weights: Tensor) -> Run:
    """A loop over the experts that have tokens; which ones is known before, as a host could not know."""
    chosen = []
    for one in ids:
        found = [(one == expert).nonzero(as_tuple=True) for expert in range(EXPERTS)]
        chosen.append([(e, tokens, weights[tokens, k, None]) for e, (tokens, k) in enumerate(found) if len(tokens)])

    def product(rows: Tensor, packed: Packed) -> Tensor:
        return torch._weight_int4pack_mm(rows, packed[0], 32, packed[1])

    def run(i: int) -> Tensor:
        total = torch.zeros(x.shape[1], HIDDEN, device=x.device)
        for expert, tokens, share in chosen[i]:
            gate, up, down = experts[expert]
            rows = x[i][tokens]
            inner = functional.silu(product(rows, gate)) * product(rows, up)
            total.index_add_(0, tokens, product(inner, down) * share)
        return total

    return run


def _grouped_products(x: Tensor, ids: Tensor, weights: Tensor) -> Run:
    """Experts as bf16, 3.6 times the bytes: what PyTorch has for many experts."""
    gate_up, down = bf16(EXPERTS, HIDDEN, 2 * WIDTH).mul_(0.01), bf16(EXPERTS, WIDTH, HIDDEN).mul_(0.01)

    def run(i: int) -> Tensor:
        flat = ids[i].flatten()
        order = flat.argsort()
        counts = torch.zeros(EXPERTS, dtype=torch.int32, device=x.device).index_add_(0, flat, torch.ones_like(flat))
        ends = counts.cumsum(0).int()
        rows = x[i][order // TOP_K]
        gate, up = torch._grouped_mm(rows, gate_up, offs=ends).chunk(2, -1)
        parts = torch._grouped_mm(functional.silu(gate) * up, down, offs=ends)
        total = torch.zeros(x.shape[1], HIDDEN, device=x.device)
        return total.index_add_(0, order // TOP_K, parts * weights.flatten()[order, None])

    return run


def bf16_bytes() -> int:
    """Of a layer's experts without quantisation."""
    return 6 * EXPERTS * HIDDEN * WIDTH


def _free_bytes(device: torch.device) -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def uniform_routing(tokens: int) -> Tensor:
    """Different experts for each token, all with the same chance, [tokens, 8] i32."""
    return torch.rand(tokens, EXPERTS).argsort(-1)[:, :TOP_K].int()


def zipf_routing(tokens: int) -> Tensor:
    """Different experts for each token, the nth most popular with a chance of 1 / n, [tokens, 8] i32."""
    chances = 1 / torch.arange(1, EXPERTS + 1)[torch.randperm(EXPERTS)]
    return torch.multinomial(chances.expand(tokens, -1), TOP_K).int()
