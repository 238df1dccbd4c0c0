"""What `kernels.bench` times: each operation at the sizes of K2.6, ours beside what PyTorch alone offers.

Inputs rotate among sets, so that no call finds the bytes of the last one in the cache of the chip. Contenders get the
same inputs and give the same outputs; where one does less, its name says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels import reference, roofline, sampling, vision, vision_reference
from kernels.bench_checks import paged, random_expert, random_shapes
from kernels.interface import ExpertWeights, Kernels, LinearWeight
from kernels.roofline import (
    DECODE,
    EXPERTS,
    HEADS,
    HIDDEN,
    LATENT,
    NOPE,
    PREFILL,
    ROPE,
    TOP_K,
    VALUE,
    VOCAB,
    WIDTH,
    Cost,
)

SETS = 3
CONTEXTS = (4096, 32_768)
MOST_LATENT_BYTES = 24 << 30  # of one case
PATCHES = (1024, 4096)
PREFILLS = ((4096, 4096), (32_768, 32_768), (4096, 32_768))  # tokens of the chunk and of its context
DENSE = ((2112, HIDDEN), (12_288, 1536), (HIDDEN, HEADS * VALUE), (VOCAB, HIDDEN))

Run = Callable[[int], object]
"""One call, with the input set of this number."""


@dataclass(frozen=True)
class Case:
    """One operation at one size, and who does it: ours first. The inputs live as long as this."""

    name: str
    cost: Cost
    contenders: dict[str, Run]


def cases(kernels: Kernels, device: torch.device) -> Iterator[Case]:
    """One at a time: the inputs of the last one are gone before the next ones are made."""
    with torch.device(device):
        for tokens in (*DECODE, *PREFILL):
            yield _add_rms_norm(kernels, tokens)
            yield _silu_mul(kernels, tokens)
            yield _rope(kernels, tokens)
            yield _route(kernels, tokens)
        for rows, columns in DENSE:
            weights = [kernels.pack_linear(_bf16(rows, columns)) for _ in range(1 if rows == VOCAB else SETS)]
            for tokens in DECODE if rows == VOCAB else (*DECODE, *PREFILL):
                x = _bf16(tokens, columns)
                name = f"linear {rows} x {columns}, {tokens} tokens"
                product = partial(_linear, kernels, x, weights)
                yield Case(name, roofline.linear(rows, columns, tokens), {"ours (cuBLAS)": product})
        for context in CONTEXTS:
            for rows in DECODE:
                if 2 * rows * context * (LATENT + ROPE) <= MOST_LATENT_BYTES:
                    yield _mla_decode(kernels, rows, context)
        for tokens, context in PREFILLS:
            yield _mla_prefill(kernels, tokens, context)
        for patches in PATCHES:
            yield _vit_attention(patches)
        for rows in DECODE:
            yield _draw(rows)
        yield from _expert_mlp(kernels, device)


def _bf16(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16)


def _add_rms_norm(kernels: Kernels, tokens: int) -> Case:
    x, residual, weight = _bf16(SETS, tokens, HIDDEN), _bf16(SETS, tokens, HIDDEN), _bf16(HIDDEN)
    return Case(
        f"add_rms_norm, {tokens} tokens",
        roofline.add_rms_norm(tokens),
        {
            "ours": lambda i: kernels.add_rms_norm(x[i], residual[i], weight, 1e-6),
            "PyTorch": lambda i: functional.rms_norm(residual[i].add_(x[i]), (HIDDEN,), weight, 1e-6),
        },
    )


def _silu_mul(kernels: Kernels, tokens: int) -> Case:
    x = _bf16(SETS, tokens, 2 * WIDTH)
    return Case(
        f"silu_mul, {tokens} tokens",
        roofline.silu_mul(tokens),
        {
            "ours": lambda i: kernels.silu_mul(x[i]),
            "PyTorch": lambda i: functional.silu(x[i, :, :WIDTH]) * x[i, :, WIDTH:],
        },
    )


def _rope(kernels: Kernels, tokens: int) -> Case:
    x, inv_freq = _bf16(SETS, tokens, HEADS, ROPE), torch.rand(ROPE // 2)
    positions = torch.arange(tokens)
    return Case(
        f"rope, {tokens} tokens",
        roofline.rope(tokens),
        {
            "ours": lambda i: kernels.rope(x[i], positions, inv_freq),
            "PyTorch": lambda i: reference.rope(x[i], positions, inv_freq),
        },
    )


def _route(kernels: Kernels, tokens: int) -> Case:
    hidden, gate, bias = _bf16(SETS, tokens, HIDDEN), torch.randn(EXPERTS, HIDDEN), torch.rand(EXPERTS)
    how = {"top_k": TOP_K, "num_groups": 1, "topk_groups": 1, "normalize": True, "scale": 2.827}
    return Case(
        f"route with its logits, {tokens} tokens",
        # The gate is float32.
        roofline.linear(2 * EXPERTS, HIDDEN, tokens) + roofline.choose(tokens),
        {
            "ours": lambda i: kernels.route(hidden[i], gate, bias, **how),  # type: ignore[arg-type]
            "PyTorch": lambda i: reference.route(hidden[i], gate, bias, **how),  # type: ignore[arg-type]
        },
    )


def _mla_decode(kernels: Kernels, rows: int, context: int) -> Case:
    cache, tables = paged(torch.get_default_device(), (context,) * rows, LATENT + ROPE)
    lens = torch.full((rows,), context, dtype=torch.int32)
    q = _bf16(SETS, rows, HEADS, LATENT + ROPE)
    contiguous = cache.view(rows, context, LATENT + ROPE)

    def products(i: int) -> Tensor:
        scores = torch.bmm(q[i], contiguous.transpose(1, 2)).float() * 0.1
        return torch.bmm(scores.softmax(-1).bfloat16(), contiguous[..., :LATENT])

    return Case(
        f"mla_decode, {rows} rows of {context}",
        roofline.mla_decode(rows, context),
        {
            "ours": lambda i: kernels.mla_decode(q[i, ..., :LATENT], q[i, ..., LATENT:], cache, tables, lens, 0.1),
            "bmm + softmax, latents in order": products,
        },
    )


def _mla_prefill(kernels: Kernels, tokens: int, context: int) -> Case:
    cache, tables = paged(torch.get_default_device(), (context,), LATENT + ROPE)
    q, weight = _bf16(tokens, HEADS, NOPE + ROPE), _bf16(HEADS * (NOPE + VALUE), LATENT) * LATENT**-0.5
    kv_b = kernels.pack_linear(weight)
    latents = cache.view(-1, LATENT + ROPE)
    contenders: dict[str, Run] = {
        "ours": lambda _: kernels.mla_prefill(q[..., :NOPE], q[..., NOPE:], cache, tables[0], context, kv_b, VALUE, 0.1)
    }

    def sdpa(_: int) -> Tensor:
        projected = functional.linear(latents[:, :LATENT], weight).view(context, HEADS, NOPE + VALUE)
        rope = latents[:, None, LATENT:].expand(-1, HEADS, -1)
        key, value = torch.cat([projected[..., :NOPE], rope], dim=-1), projected[..., NOPE:]
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q, key, value))
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.1)

    if tokens == context:
        contenders["scaled_dot_product_attention, latents in order"] = sdpa
    return Case(f"mla_prefill, {tokens} of {context}", roofline.mla_prefill(tokens, context), contenders)


def _vit_attention(patches: int) -> Case:
    q, k, v = _bf16(patches, 3, 16, 72).unbind(1)
    cost = Cost(2 * 4 * patches * 16 * 72, 4 * patches * patches * 16 * 72)
    return Case(
        f"vit_attention, {patches} patches",
        cost,
        {
            "ours": lambda _: vision.vit_attention(q, k, v, [patches]),
            "scaled_dot_product_attention": lambda _: vision_reference.vit_attention(q, k, v, [patches]),
        },
    )


def _draw(rows: int) -> Case:
    logits, shapes = torch.randn(SETS, rows, VOCAB) * 4, random_shapes(torch.get_default_device(), rows)
    sampled = shapes._replace(temperature=torch.full_like(shapes.temperature, 0.8))
    uniforms = torch.rand(rows, 1, dtype=torch.float64)

    def sort(i: int) -> Tensor:
        ordered, ids = logits[i].sort(dim=-1, descending=True)
        mass = (ordered.double() / 0.8).softmax(-1).cumsum(-1)
        return ids.gather(1, torch.searchsorted(mass, uniforms * 0.95))

    return Case(
        f"draw, {rows} rows",
        roofline.sample(rows),
        {"ours": lambda i: sampling.draw(logits[i], sampled), "sort + searchsorted, top-p alone": sort},
    )


def _expert_mlp(kernels: Kernels, device: torch.device) -> Iterator[Case]:
    """One layer's 384 experts are 9.5 GB, so they need no further sets."""
    experts = kernels.pack_experts(random_expert(device, HIDDEN, WIDTH) for _ in range(EXPERTS))
    for tokens in (*DECODE, *PREFILL):
        x, weights = _bf16(SETS, tokens, HIDDEN), torch.rand(tokens, TOP_K)
        ids = torch.stack([uniform_routing(tokens) for _ in range(SETS)])
        cost = roofline.expert_mlp(tokens) + roofline.combine(tokens)
        contenders: dict[str, Run] = {"ours": partial(_experts, kernels, x, ids, weights, experts)}
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > 6 * EXPERTS * HIDDEN * WIDTH + (16 << 30):
            contenders["bf16 weights, torch._grouped_mm"] = _grouped_products(x, ids, weights)
        yield Case(f"expert_mlp, {tokens} tokens", cost, contenders)


def _linear(kernels: Kernels, x: Tensor, weights: list[LinearWeight], i: int) -> Tensor:
    return kernels.linear(x, weights[i % len(weights)])


def _experts(kernels: Kernels, x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, i: int) -> Tensor:
    return kernels.expert_mlp(x[i], ids[i], weights, experts)


def _grouped_products(x: Tensor, ids: Tensor, weights: Tensor) -> Run:
    """Experts as bf16, 3.6 times the bytes: what PyTorch has for many experts."""
    gate_up, down = _bf16(EXPERTS, HIDDEN, 2 * WIDTH).mul_(0.01), _bf16(EXPERTS, WIDTH, HIDDEN).mul_(0.01)

    def run(i: int) -> Tensor:
        order = ids[i].flatten().argsort()
        counts = torch.zeros(EXPERTS, dtype=torch.int32).index_add_(
            0, ids[i].flatten(), torch.ones_like(ids[i].flatten())
        )
        ends = counts.cumsum(0).int()
        rows = x[i][order // TOP_K]
        gate, up = torch._grouped_mm(rows, gate_up, offs=ends).chunk(2, -1)
        parts = torch._grouped_mm(functional.silu(gate) * up, down, offs=ends)
        total = torch.zeros(x.shape[1], HIDDEN)
        return total.index_add_(0, order // TOP_K, parts * weights.flatten()[order, None])

    return run


def uniform_routing(tokens: int) -> Tensor:
    """Different experts for each token, all with the same chance, [tokens, 8] i32."""
    return torch.rand(tokens, EXPERTS).argsort(-1)[:, :TOP_K].int()
