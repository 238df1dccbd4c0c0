"""What `tests.bench.gpu_kernels` times: each operation at the sizes of K2.6, ours beside what PyTorch alone offers.

Contenders get the same inputs and give the same outputs; where one does less, its name says so.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels import draw, roofline
from kernels.interface import Kernels, LinearWeight
from kernels.reference import text as reference
from kernels.roofline import EXPERTS, HEADS, HIDDEN, LATENT, ROPE, TOP_K, VOCAB, WIDTH
from tests.bench.gpu_kernels import attention, experts, layers
from tests.bench.gpu_kernels.case import Case, Plan, bf16
from tests.bench.gpu_kernels.checks import paged, random_shapes
from tests.bench.gpu_kernels.timing import SETS

Cases = Callable[[Kernels, Plan], Iterator[Case]]


def cases(kernels: Kernels, device: torch.device, plan: Plan, only: tuple[str, ...] = ("",)) -> Iterator[Case]:
    """One at a time: the inputs of the last one are gone before the next ones are made."""
    for name, make in GROUPS.items():
        if name.startswith(only):
            with torch.device(device):
                yield from make(kernels, plan)


def _add_rms_norm(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    for tokens in (*plan.decode, *plan.prefill):
        x, residual, weight = bf16(SETS, tokens, HIDDEN), bf16(SETS, tokens, HIDDEN), bf16(HIDDEN)
        yield Case(
            f"add_rms_norm, {tokens} tokens",
            (roofline.add_rms_norm(tokens),),
            {
                "ours": partial(lambda x, r, w, i: kernels.add_rms_norm(x[i], r[i], w, 1e-6), x, residual, weight),
                "PyTorch": partial(_torch_norm, x, residual, weight),
            },
        )


def _torch_norm(x: Tensor, residual: Tensor, weight: Tensor, i: int) -> tuple[Tensor, Tensor]:
    total = x[i] + residual[i]
    return total, functional.rms_norm(total, (HIDDEN,), weight, 1e-6)


def _norm_rope_store(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    for tokens in (*plan.decode, *plan.prefill):
        cache, _ = paged(torch.get_default_device(), (tokens,), LATENT + ROPE)
        qkv, weight = bf16(SETS, tokens, roofline.Q_LORA + LATENT + ROPE), bf16(LATENT)
        place = torch.randperm(cache.shape[0] * cache.shape[1])[:tokens]
        rest = (weight, 1e-6, torch.arange(tokens), torch.rand(ROPE // 2))

        def run(
            store: Callable[..., None], cache: Tensor, place: Tensor, qkv: Tensor, rest: tuple[object, ...], i: int
        ) -> Tensor:
            store(cache, place, qkv[i, :, -LATENT - ROPE : -ROPE], qkv[i, :, -ROPE:], *rest)
            return cache

        yield Case(
            f"norm_rope_store, {tokens} tokens",
            (roofline.norm_rope_store(tokens),),
            {
                "ours": partial(run, kernels.norm_rope_store, cache, place, qkv, rest),
                "PyTorch": partial(run, reference.norm_rope_store, cache, place, qkv, rest),
            },
        )


def _silu_mul(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    for tokens in (*plan.decode, *plan.prefill):
        x = bf16(SETS, tokens, 2 * WIDTH)
        yield Case(
            f"silu_mul, {tokens} tokens",
            (roofline.silu_mul(tokens),),
            {
                "ours": partial(lambda x, i: kernels.silu_mul(x[i]), x),
                "PyTorch": partial(lambda x, i: functional.silu(x[i, :, :WIDTH]) * x[i, :, WIDTH:], x),
            },
        )


def _rope(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    for tokens in (*plan.decode, *plan.prefill):
        x, turns = bf16(SETS, tokens, HEADS, ROPE), (torch.arange(tokens), torch.rand(ROPE // 2))
        yield Case(
            f"rope, {tokens} tokens",
            (roofline.rope(tokens),),
            {
                "ours": partial(lambda x, turns, i: kernels.rope(x[i], *turns), x, turns),
                "PyTorch": partial(lambda x, turns, i: reference.rope(x[i], *turns), x, turns),
            },
        )


def _route(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    gate, bias = bf16(EXPERTS, HIDDEN), torch.rand(EXPERTS)
    how = {"top_k": TOP_K, "num_groups": 1, "topk_groups": 1, "normalize": True, "scale": 2.827}
    for tokens in (*plan.decode, *plan.prefill):
        hidden = bf16(SETS, tokens, HIDDEN)
        yield Case(
            f"route with its logits, {tokens} tokens",
            (roofline.linear(EXPERTS, HIDDEN, tokens, out_bytes=4), roofline.choose(tokens)),
            {
                "ours": partial(lambda x, i: kernels.route(x[i], gate, bias, **how), hidden),  # type: ignore[arg-type]
                "PyTorch": partial(lambda x, i: reference.route(x[i], gate, bias, **how), hidden),  # type: ignore[arg-type]
            },
        )


def _linear(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    for rows, columns in plan.dense:
        weights = [kernels.pack_linear(bf16(rows, columns)) for _ in range(1 if rows == VOCAB else SETS)]
        for tokens in plan.decode if rows == VOCAB else (*plan.decode, *plan.prefill):
            product = partial(_product, kernels, bf16(tokens, columns), weights)
            cost = roofline.linear(rows, columns, tokens)
            yield Case(f"linear {rows} x {columns}, {tokens} tokens", (cost,), {"ours (cuBLAS)": product})


def _product(kernels: Kernels, x: Tensor, weights: list[LinearWeight], i: int) -> Tensor:
    return kernels.linear(x, weights[i % len(weights)])


def _draw(_: Kernels, plan: Plan) -> Iterator[Case]:
    for rows in plan.decode:
        logits, shapes = torch.randn(SETS, rows, VOCAB) * 4, random_shapes(torch.get_default_device(), rows)
        sampled = shapes._replace(temperature=torch.full_like(shapes.temperature, 0.8))
        plain = sampled._replace(
            top_k=torch.zeros_like(shapes.top_k),
            top_p=torch.ones_like(shapes.top_p),
            min_p=torch.zeros_like(shapes.min_p),
        )
        yield Case(
            f"draw, {rows} rows",
            (roofline.sample(rows),),
            {
                "ours, temperature alone": partial(lambda x, how, i: draw(x[i], how), logits, plain),
                "ours, every limit": partial(lambda x, how, i: draw(x[i], how), logits, sampled),
                "sort + searchsorted, top-p alone": partial(_sorted_draw, logits, torch.rand(rows, 1).double()),
            },
        )


def _sorted_draw(logits: Tensor, uniforms: Tensor, i: int) -> Tensor:
    ordered, ids = logits[i].sort(dim=-1, descending=True)
    mass = (ordered.double() / 0.8).softmax(-1).cumsum(-1)
    return ids.gather(1, torch.searchsorted(mass, uniforms * 0.95))


GROUPS: dict[str, Cases] = {
    "expert_mlp": experts.cases,
    "mla_decode": attention.decode_cases,
    "layer": layers.cases,
    "mla_prefill": attention.prefill_cases,
    "linear": _linear,
    "add_rms_norm": _add_rms_norm,
    "norm_rope_store": _norm_rope_store,
    "route": _route,
    "rope": _rope,
    "silu_mul": _silu_mul,
    "draw": _draw,
    "vit_attention": attention.vision_cases,
}
