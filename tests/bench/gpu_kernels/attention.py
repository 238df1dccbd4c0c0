"""Attention as the bench times it, beside what PyTorch offers and how public Triton kernels do it."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import roofline, vit_attention
from kernels.gpu import attention_decode
from kernels.gpu.attention_decode import DecodeTiles, decode_tiles
from kernels.interface import Kernels
from kernels.reference import vision as vision_reference
from kernels.roofline import HEADS, LATENT, NOPE, ROPE, VALUE, Cost
from tests.bench.gpu_kernels.case import Case, Plan, bf16
from tests.bench.gpu_kernels.checks import paged
from tests.bench.gpu_kernels.timing import SETS, Run

MOST_LATENT_BYTES = 24 << 30  # of one case
MOST_SCORE_BYTES = 4 << 30
# The usual decode kernel in Triton has 16 heads and 32 tokens a program, so every key is read four times.
PUBLIC_TILES = DecodeTiles(16, 32, 4, 2, split_tiles=32)


def decode_cases(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    """`mla_decode` with rows of equal context."""
    for context in plan.contexts:
        for rows in plan.decode:
            if 2 * rows * context * (LATENT + ROPE) <= MOST_LATENT_BYTES:
                yield _decode_case(kernels, rows, context)


def _decode_case(kernels: Kernels, rows: int, context: int) -> Case:
    cache, tables = paged(torch.get_default_device(), (context,) * rows, LATENT + ROPE)
    lens = torch.full((rows,), context, dtype=torch.int32)
    q = bf16(SETS, rows, HEADS, LATENT + ROPE)
    contiguous = cache.view(rows, context, LATENT + ROPE)

    def products(i: int) -> Tensor:
        scores = torch.bmm(q[i], contiguous.transpose(1, 2)).float() * 0.1
        return torch.bmm(scores.softmax(-1).bfloat16(), contiguous[..., :LATENT])

    def in_triton(tiles: DecodeTiles, i: int) -> Tensor:
        return attention_decode.mla_decode(q[i, ..., :LATENT], q[i, ..., LATENT:], cache, tables, lens, 0.1, tiles)

    contenders: dict[str, Run] = {
        "ours": lambda i: kernels.mla_decode(q[i, ..., :LATENT], q[i, ..., LATENT:], cache, tables, lens, 0.1),
        "ours in Triton": partial(in_triton, decode_tiles(HEADS, LATENT, q.dtype)),
        "16 heads x 32 tokens, as public Triton": partial(in_triton, PUBLIC_TILES),
    }
    if 4 * rows * HEADS * context <= MOST_SCORE_BYTES:
        contenders["bmm + softmax, latents in order"] = products
    return Case(f"mla_decode, {rows} rows of {context}", (roofline.mla_decode(rows, context),), contenders)


def prefill_cases(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    """`mla_prefill` of one chunk."""
    for tokens, context in plan.chunks:
        yield _prefill_case(kernels, tokens, context)


def _prefill_case(kernels: Kernels, tokens: int, context: int) -> Case:
    cache, tables = paged(torch.get_default_device(), (context,), LATENT + ROPE)
    q, weight = bf16(tokens, HEADS, NOPE + ROPE), bf16(HEADS * (NOPE + VALUE), LATENT) * LATENT**-0.5
    kv_b = kernels.pack_linear(weight)
    latents = cache.view(-1, LATENT + ROPE)

    def ours(_: int) -> Tensor:
        return kernels.mla_prefill(q[..., :NOPE], q[..., NOPE:], cache, tables[0], context, kv_b, VALUE, 0.1)

    def sdpa(backend: SDPBackend, padding: int, _: int) -> Tensor:
        projected = functional.linear(latents[:, :LATENT], weight).view(context, HEADS, NOPE + VALUE)
        rope = latents[:, None, LATENT:].expand(-1, HEADS, -1)
        key, value = torch.cat([projected[..., :NOPE], rope], dim=-1), projected[..., NOPE:]
        value = functional.pad(value, (0, padding)) if padding else value
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q, key, value))
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.1)

    contenders: dict[str, Run] = {"ours": ours}
    if tokens == context:  # PyTorch's causal mask begins at the first key
        padding = NOPE + ROPE - VALUE
        if weight.is_cuda:
            contenders["cuDNN, latents in order"] = partial(sdpa, SDPBackend.CUDNN_ATTENTION, 0)
            flash = partial(sdpa, SDPBackend.FLASH_ATTENTION, padding)
            contenders["FlashAttention-2, values padded to 192, latents in order"] = flash
        else:
            contenders["PyTorch, latents in order"] = partial(sdpa, SDPBackend.MATH, padding)
    return Case(f"mla_prefill, {tokens} of {context}", (roofline.mla_prefill(tokens, context),), contenders)


def vision_cases(_: Kernels, plan: Plan) -> Iterator[Case]:
    """`vit_attention` of one picture."""
    for patches in plan.patches:
        q, k, v = bf16(patches, 3, 16, 72).unbind(1)
        cost = Cost(2 * 4 * patches * 16 * 72, 4 * patches * patches * 16 * 72)
        ours = partial(lambda q, k, v, n, _: vit_attention(q, k, v, [n]), q, k, v, patches)
        sdpa = partial(lambda q, k, v, n, _: vision_reference.vit_attention(q, k, v, [n]), q, k, v, patches)
        contenders: dict[str, Run] = {"ours": ours, "scaled_dot_product_attention": sdpa}
        yield Case(f"vit_attention, {patches} patches", (cost,), contenders)
