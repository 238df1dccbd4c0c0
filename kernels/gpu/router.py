"""The router: logits by cuBLAS, then one pass that chooses experts and their weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.dense import widening_product
from kernels.gpu.device import cdiv, device_class, power_of_2

NUM_WARPS = 4


def token_rows(device: str) -> int:
    """Tokens of one program: on a GPU one, because the rounds of maxima of a program are sequential."""
    return 64 if device == "interpreter" else 1


@triton.jit(do_not_specialize=["num_tokens"])
def choose_kernel(
    logits, bias, ids, weights, num_tokens, scale,
    GROUP_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr, TOPK_GROUPS: tl.constexpr, TOP_K: tl.constexpr,
    NORMALIZE: tl.constexpr, ROWS: tl.constexpr, GROUPS_TILE: tl.constexpr, EXPERTS_TILE: tl.constexpr,
    TOP_TILE: tl.constexpr,
):  # fmt: skip
    """Each round takes the expert with the largest score, of equal ones the lowest place.

    A token's experts are in a tile [groups, experts]. Places follow the order of ids; both dimensions are padded to a
    power of two.
    """
    TILE: tl.constexpr = GROUPS_TILE * EXPERTS_TILE
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, TILE)
    expert = place // EXPERTS_TILE * GROUP_EXPERTS + place % EXPERTS_TILE
    is_expert = (place % EXPERTS_TILE < GROUP_EXPERTS) & (place // EXPERTS_TILE < NUM_GROUPS)
    inside = (token < num_tokens)[:, None] & is_expert[None, :]
    at = logits + token[:, None] * (GROUP_EXPERTS * NUM_GROUPS) + expert[None, :]
    scores = tl.sigmoid(tl.load(at, mask=inside, other=0.0))
    choice = scores + tl.load(bias + expert, mask=is_expert, other=0.0)[None, :]
    # NaN counts as the largest, as in PyTorch's sort. Padding gets a value below the least score of an expert.
    choice = tl.where(choice != choice, 3.0e38, tl.maximum(choice, -3.0e38))  # noqa: PLR0124
    if NUM_GROUPS > 1:
        kept = _kept_groups(choice, is_expert, GROUP_EXPERTS, NUM_GROUPS, TOPK_GROUPS, ROWS, GROUPS_TILE, EXPERTS_TILE)
        choice = tl.where(kept, choice, 0.0)
    choice = tl.where(is_expert[None, :], choice, float("-inf"))
    top = tl.arange(0, TOP_TILE)
    chosen_ids = tl.zeros((ROWS, TOP_TILE), tl.int32)
    chosen = tl.zeros((ROWS, TOP_TILE), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for k in range(TOP_K):
        best = tl.argmax(choice, axis=1)
        is_best = place[None, :] == best[:, None]
        score = tl.sum(tl.where(is_best, scores, 0.0), axis=1)
        total += score
        chosen = tl.where(top[None, :] == k, score[:, None], chosen)
        best_id = best // EXPERTS_TILE * GROUP_EXPERTS + best % EXPERTS_TILE
        chosen_ids = tl.where(top[None, :] == k, best_id[:, None], chosen_ids)
        choice = tl.where(is_best, float("-inf"), choice)
    if NORMALIZE:
        chosen = chosen / (total[:, None] + 1e-20)
    target = token[:, None] * TOP_K + top[None, :]
    wanted = (token < num_tokens)[:, None] & (top < TOP_K)[None, :]
    tl.store(ids + target, chosen_ids, mask=wanted)
    tl.store(weights + target, chosen * scale, mask=wanted)


@triton.jit
def _kept_groups(
    choice, is_expert, GROUP_EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr, TOPK_GROUPS: tl.constexpr,
    ROWS: tl.constexpr, GROUPS_TILE: tl.constexpr, EXPERTS_TILE: tl.constexpr,
):  # fmt: skip
    """Whether each place is in one of the groups whose two best experts have the largest sums."""
    grouped = tl.reshape(tl.where(is_expert[None, :], choice, float("-inf")), (ROWS, GROUPS_TILE, EXPERTS_TILE))
    best = tl.argmax(grouped, axis=2)
    sums = tl.max(grouped, axis=2)
    if GROUP_EXPERTS > 1:
        others = tl.where(tl.arange(0, EXPERTS_TILE)[None, None, :] == best[:, :, None], float("-inf"), grouped)
        sums += tl.max(others, axis=2)
    group = tl.arange(0, GROUPS_TILE)
    sums = tl.where((group < NUM_GROUPS)[None, :], sums, float("-inf"))
    kept = tl.zeros((ROWS, GROUPS_TILE), tl.int32)
    for _ in range(TOPK_GROUPS):
        is_best = group[None, :] == tl.argmax(sums, axis=1)[:, None]
        kept = tl.where(is_best, 1, kept)
        sums = tl.where(is_best, float("-inf"), sums)
    kept = tl.broadcast_to(kept[:, :, None], (ROWS, GROUPS_TILE, EXPERTS_TILE))
    return tl.reshape(kept, (ROWS, GROUPS_TILE * EXPERTS_TILE)) > 0


def _logits(hidden: Tensor, gate: Tensor) -> Tensor:
    """hidden gate^T in float32, where products of bf16 numbers are exact; TF32 would choose other experts."""
    if hidden.dtype == gate.dtype == torch.bfloat16:
        return widening_product(hidden, gate, torch.float32)
    return hidden.float() @ gate.float().T


class Router:
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
    ) -> tuple[Tensor, Tensor]:
        tokens, num_experts = hidden.shape[0], gate.shape[0]
        ids = torch.empty(tokens, top_k, dtype=torch.int32, device=hidden.device)
        weights = torch.empty(tokens, top_k, dtype=torch.float32, device=hidden.device)
        if tokens == 0:
            return ids, weights
        logits = _logits(hidden, gate)
        rows = token_rows(device_class(hidden))
        choose_kernel[(cdiv(tokens, rows),)](
            logits, bias.contiguous(), ids, weights, tokens, scale,
            GROUP_EXPERTS=num_experts // num_groups, NUM_GROUPS=num_groups, TOPK_GROUPS=topk_groups, TOP_K=top_k,
            NORMALIZE=normalize, ROWS=rows, GROUPS_TILE=power_of_2(num_groups),
            EXPERTS_TILE=power_of_2(num_experts // num_groups), TOP_TILE=power_of_2(top_k), num_warps=NUM_WARPS,
        )  # fmt: skip
        return ids, weights
