"""Every operation on fresh random data against the reference in float32: how far off it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import Shapes, draw, vit_attention
from kernels.interface import Kernels
from kernels.reference import sampling as sampling_reference
from kernels.reference import text as reference
from kernels.reference import vision as vision_reference

LIMIT = 4e-3  # relative to the norm of the result, for one rounding to bf16
SCALE = 0.1


class Sizes(NamedTuple):
    """Of the model; the defaults are K2.6's."""

    hidden: int = 7168
    width: int = 2048
    experts: int = 12  # as many as there is patience for: each is multiplied in float32
    top_k: int = 8
    heads: int = 64
    latent: int = 512
    rope: int = 64
    nope: int = 128
    value: int = 128
    vocab: int = 163_840
    tokens: int = 33
    contexts: tuple[int, ...] = (1, 64, 0, 1025, 5000)
    vision_heads: int = 16
    vision_width: int = 72
    lengths: tuple[int, ...] = (1, 1000, 129)


K26 = Sizes()


@dataclass(frozen=True)
class Check:
    """What came of one operation."""

    name: str
    error: float  # relative to the norm of the expected result; for choices the share that differs
    limit: float
    said: str = ""  # by an operation that failed

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # not so for NaN


def checks(
    kernels: Kernels, device: torch.device, only: tuple[str, ...] = ("",), sizes: Sizes = K26
) -> Iterator[Check]:
    """One after the other, so that the first is known before the last is computed; those whose name begins so."""
    for name, compare in COMPARISONS.items():
        if name.startswith(only):
            try:
                error, roundings = compare(kernels, device, sizes)
                yield Check(name, error, LIMIT * roundings)
            except Exception as reason:  # noqa: BLE001 - whatever it is, the other kernels are still to be checked
                yield Check(name, float("nan"), 0.0, f"{type(reason).__name__}: {reason}")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected; NaN if either has one."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-30))


def _bf16(device: torch.device, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16) * scale


def _norms(kernels: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    x, residual = _bf16(device, sizes.tokens, sizes.hidden), _bf16(device, sizes.tokens, sizes.hidden)
    weight = _bf16(device, sizes.hidden)
    total, normed = kernels.add_rms_norm(x, residual, weight, 1e-6)
    expected = reference.rms_norm((x + residual).float(), weight, 1e-6)
    assert torch.equal(total, x + residual)
    return relative_error(normed, expected), 2


def _silu_mul(kernels: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    gate_up = _bf16(device, sizes.tokens, 2 * sizes.width)
    return relative_error(kernels.silu_mul(gate_up), reference.silu_mul(gate_up.float())), 1


def _rope(kernels: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    x = _bf16(device, sizes.tokens, sizes.heads, sizes.rope)
    positions = torch.randint(0, 4096, (sizes.tokens,), device=device)
    inv_freq = torch.rand(sizes.rope // 2, device=device)
    return relative_error(kernels.rope(x, positions, inv_freq), reference.rope(x.float(), positions, inv_freq)), 1


def _norm_rope_store(kernels: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    latent, rope_key = _bf16(device, sizes.tokens, sizes.latent), _bf16(device, sizes.tokens, sizes.rope)
    weight, inv_freq = _bf16(device, sizes.latent), torch.rand(sizes.rope // 2, device=device)
    positions = torch.randint(0, 4096, (sizes.tokens,), device=device)
    cache = torch.zeros(-(-sizes.tokens // 64) + 1, 64, sizes.latent + sizes.rope, device=device)
    slots = torch.randperm(cache.shape[0] * 64, device=device)[: sizes.tokens]
    actual = cache.bfloat16()
    kernels.norm_rope_store(actual, slots, latent, rope_key, weight, 1e-6, positions, inv_freq)
    reference.norm_rope_store(cache, slots, latent.float(), rope_key.float(), weight, 1e-6, positions, inv_freq)
    return relative_error(actual, cache), 2


def _route(kernels: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    hidden = _bf16(device, sizes.tokens, sizes.hidden)
    gate = torch.randn(4 * sizes.experts, sizes.hidden, device=device) * sizes.hidden**-0.5
    how = {"top_k": sizes.top_k, "num_groups": 1, "topk_groups": 1, "normalize": True, "scale": 2.827}
    bias = torch.rand(4 * sizes.experts, device=device)
    ids, weights = kernels.route(hidden, gate, bias, **how)  # type: ignore[arg-type]
    expected_ids, expected = reference.route(hidden, gate, bias, **how)  # type: ignore[arg-type]
    # Sums in another order may swap experts that are nearly equal.
    same = (ids == expected_ids).all(-1)
    return relative_error(weights[same], expected[same]) + float(same.float().mean() < 0.9), 1


def _expert_mlp(kernels: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    experts = [random_expert(device, sizes.hidden, sizes.width) for _ in range(sizes.experts)]
    x = _bf16(device, sizes.tokens, sizes.hidden)
    ids = torch.rand(sizes.tokens, sizes.experts, device=device).argsort(-1)[:, : sizes.top_k].int()
    ids[0] = -1
    weights = torch.rand(sizes.tokens, sizes.top_k, device=device)
    actual = kernels.expert_mlp(x, ids, weights, kernels.pack_experts(experts))
    return relative_error(actual, reference.expert_mlp(x.float(), ids, weights, reference.pack_experts(experts))), 2


def _mla_decode(kernels: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    cache, tables = paged(device, sizes.contexts, sizes.latent + sizes.rope)
    q = _bf16(device, len(sizes.contexts), sizes.heads, sizes.latent + sizes.rope)
    lens = torch.tensor(sizes.contexts, dtype=torch.int32, device=device)
    q_latent, q_rope = q[..., : sizes.latent], q[..., sizes.latent :]
    expected = reference.mla_decode(q_latent.float(), q_rope.float(), cache.float(), tables, lens, SCALE)
    return relative_error(kernels.mla_decode(q_latent, q_rope, cache, tables, lens, SCALE), expected), 1


def _mla_prefill(kernels: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    context = max(sizes.contexts)
    cache, tables = paged(device, (context,), sizes.latent + sizes.rope)
    q = _bf16(device, sizes.tokens, sizes.heads, sizes.nope + sizes.rope)
    weight = _bf16(device, sizes.heads * (sizes.nope + sizes.value), sizes.latent, scale=sizes.latent**-0.5)
    q_nope, q_rope = q[..., : sizes.nope], q[..., sizes.nope :]
    kv_b = kernels.pack_linear(weight)
    actual = kernels.mla_prefill(q_nope, q_rope, cache, tables[0], context, kv_b, sizes.value, SCALE)
    plain = reference.pack_linear(weight)
    exact = (q_nope.float(), q_rope.float(), cache.float(), tables[0], context, plain, sizes.value, SCALE)
    return relative_error(actual, reference.mla_prefill(*exact)), 2


def _vit_attention(_: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    q, k, v = _bf16(device, sum(sizes.lengths), 3, sizes.vision_heads, sizes.vision_width).unbind(1)
    expected = vision_reference.vit_attention(q.float(), k.float(), v.float(), sizes.lengths)
    return relative_error(vit_attention(q, k, v, sizes.lengths), expected), 1


def _draw(_: Kernels, device: torch.device, sizes: Sizes) -> tuple[float, int]:
    logits, shapes = torch.randn(sizes.tokens, sizes.vocab, device=device) * 4, random_shapes(device, sizes.tokens)
    found, expected = draw(logits, shapes)[0], sampling_reference.draw(logits, shapes)[0]
    return float((found != expected).float().mean()), 0


COMPARISONS: dict[str, Callable[[Kernels, torch.device, Sizes], tuple[float, int]]] = {
    "add_rms_norm": _norms,
    "silu_mul": _silu_mul,
    "rope": _rope,
    "norm_rope_store": _norm_rope_store,
    "route": _route,
    "expert_mlp": _expert_mlp,
    "mla_decode": _mla_decode,
    "mla_prefill": _mla_prefill,
    "vit_attention": _vit_attention,
    "draw": _draw,
}


def random_expert(device: torch.device, hidden: int, width: int) -> tuple[Tensor, ...]:
    """One expert as a checkpoint has it: all sixteen values, scales of about 0.01."""

    def int4(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        words = torch.randint(-(2**31), 2**31, (rows, columns // 8), dtype=torch.int32, device=device)
        return words, (torch.rand(rows, columns // 32, device=device) * 0.01 + 0.005).bfloat16()

    return (*int4(width, hidden), *int4(width, hidden), *int4(hidden, width))


def paged(device: torch.device, contexts: tuple[int, ...], width: int, block_tokens: int = 64) -> tuple[Tensor, Tensor]:
    """A cache full of random latents and a block table for each context, in any order."""
    columns = max(1, -(-max(contexts) // block_tokens))
    tables = torch.randperm(len(contexts) * columns, device=device).int().view(len(contexts), columns)
    return _bf16(device, len(contexts) * columns, block_tokens, width), tables


def random_shapes(device: torch.device, rows: int) -> Shapes:
    """Some greedy rows, some plain, some with every limit."""
    row = torch.arange(rows, device=device)
    return Shapes(
        temperature=(row % 4 * 0.5).double(),
        top_k=(row % 3 * 40).int(),
        top_p=1 - row.double() % 5 * 0.1,
        min_p=row.double() % 2 * 0.01,
        seeds=row * 7919,
        positions=row + 1000,
    )
