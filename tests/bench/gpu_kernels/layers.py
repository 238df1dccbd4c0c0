"""A whole layer on an attention GPU without its routed experts, as `services/attention/layers/formulas.py` launches it.

Norm, attention, norm, router, shared expert and the last sum, with the weights of one layer, 0.3 GB.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import roofline
from kernels.interface import Kernels
from kernels.roofline import EXPERTS, HEADS, HIDDEN, LATENT, NOPE, Q_LORA, ROPE, TOP_K, VALUE, WIDTH, Cost
from tests.bench.gpu_kernels.attention import MOST_LATENT_BYTES
from tests.bench.gpu_kernels.case import Case, Plan, bf16
from tests.bench.gpu_kernels.checks import paged
from tests.bench.gpu_kernels.timing import SETS


class Place(NamedTuple):
    """The latents of a case, and where its tokens stand in them."""

    cache: Tensor
    tables: Tensor
    lens: Tensor
    positions: Tensor
    slots: Tensor


class Layer:
    """Random weights of one layer, packed, and its operations."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._norms = [bf16(width) for width in (HIDDEN, Q_LORA, LATENT, HIDDEN)]
        shapes = (
            (Q_LORA + LATENT + ROPE, HIDDEN),
            (HEADS * (NOPE + ROPE), Q_LORA),
            (HEADS * (NOPE + VALUE), LATENT),
            (HIDDEN, HEADS * VALUE),
            (2 * WIDTH, HIDDEN),
            (HIDDEN, WIDTH),
        )
        packed = [kernels.pack_linear(bf16(rows, columns) * columns**-0.5) for rows, columns in shapes]
        self._qkv_a, self._q_b, self._kv_b, self._o, self._gate_up, self._down = packed
        self._key_absorbed = kernels.pack_heads(bf16(HEADS, LATENT, NOPE) * NOPE**-0.5)
        self._value_up = kernels.pack_heads(bf16(HEADS, VALUE, LATENT) * LATENT**-0.5)
        self._gate, self._bias = bf16(EXPERTS, HIDDEN) * HIDDEN**-0.5, torch.rand(EXPERTS)
        self._inv_freq = torch.rand(ROPE // 2)

    def decode(self, hidden: Tensor, place: Place) -> Tensor:
        """One token a row."""
        k = self._kernels
        q_nope, q_rope = self._before(hidden, place)
        absorbed = k.head_linear(q_nope, self._key_absorbed)
        latents = k.mla_decode(absorbed, q_rope, place.cache, place.tables, place.lens, 0.1)
        return self._after(hidden, k.head_linear(latents, self._value_up))

    def prefill(self, hidden: Tensor, place: Place) -> Tensor:
        """One chunk, the last tokens of its context."""
        q_nope, q_rope = self._before(hidden, place)
        context = place.cache.shape[0] * place.cache.shape[1]
        heads = self._kernels.mla_prefill(q_nope, q_rope, place.cache, place.tables[0], context, self._kv_b, VALUE, 0.1)
        return self._after(hidden, heads)

    def _before(self, hidden: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        k = self._kernels
        x = k.rms_norm(hidden, self._norms[0], 1e-6)
        q_latent, latent, rope_key = k.linear(x, self._qkv_a).split_with_sizes([Q_LORA, LATENT, ROPE], dim=-1)
        turns = place.positions, self._inv_freq
        k.norm_rope_store(place.cache, place.slots, latent, rope_key, self._norms[2], 1e-6, *turns)
        q = k.linear(k.rms_norm(q_latent, self._norms[1], 1e-6), self._q_b).view(-1, HEADS, NOPE + ROPE)
        return q[..., :NOPE], k.rope(q[..., NOPE:], *turns)

    def _after(self, hidden: Tensor, heads: Tensor) -> Tensor:
        k = self._kernels
        hidden, x = k.add_rms_norm(hidden, k.linear(heads.flatten(1), self._o), self._norms[3], 1e-6)
        how = {"top_k": TOP_K, "num_groups": 1, "topk_groups": 1, "normalize": True, "scale": 2.827}
        k.route(x, self._gate, self._bias, **how)  # type: ignore[arg-type]
        shared = k.linear(k.silu_mul(k.linear(x, self._gate_up)), self._down)
        return hidden + shared


def parts(tokens: int, attention: tuple[Cost, ...]) -> tuple[Cost, ...]:
    """What a layer has to do, in order."""
    return (
        roofline.rms_norm(tokens),
        roofline.linear(Q_LORA + LATENT + ROPE, HIDDEN, tokens),
        roofline.norm_rope_store(tokens),
        roofline.rms_norm(tokens, Q_LORA),
        roofline.linear(HEADS * (NOPE + ROPE), Q_LORA, tokens),
        roofline.rope(tokens),
        *attention,
        roofline.linear(HIDDEN, HEADS * VALUE, tokens),
        roofline.add_rms_norm(tokens),
        roofline.linear(EXPERTS, HIDDEN, tokens, out_bytes=4),
        roofline.choose(tokens),
        roofline.linear(2 * WIDTH, HIDDEN, tokens),
        roofline.silu_mul(tokens),
        roofline.linear(HIDDEN, WIDTH, tokens),
        Cost(6 * tokens * HIDDEN),
    )


def cases(kernels: Kernels, plan: Plan) -> Iterator[Case]:
    """Decode steps and chunks of a prompt."""
    layer = Layer(kernels)
    for context in plan.contexts:
        for rows in plan.decode:
            if 2 * rows * context * (LATENT + ROPE) <= MOST_LATENT_BYTES:
                cache, tables = paged(torch.get_default_device(), (context,) * rows, LATENT + ROPE)
                positions, slots = torch.full((rows,), context - 1), tables[:, -1].long() * 64 + (context - 1) % 64
                place = Place(cache, tables, (positions + 1).int(), positions, slots)
                run = partial(_run, layer.decode, bf16(SETS, rows, HIDDEN), place)
                costs = parts(rows, (*absorbed(rows), roofline.mla_decode(rows, context)))
                yield Case(f"layer, {rows} rows of {context}", costs, {"ours": run})
    for tokens, context in plan.chunks:
        cache, tables = paged(torch.get_default_device(), (context,), LATENT + ROPE)
        positions = torch.arange(context - tokens, context)
        slots = tables[0, positions // 64].long() * 64 + positions % 64
        place = Place(cache, tables, tables[:, 0], positions, slots)
        run = partial(_run, layer.prefill, bf16(SETS, tokens, HIDDEN), place)
        costs = parts(tokens, (roofline.mla_prefill(tokens, context),))
        yield Case(f"layer, chunk {tokens} of {context}", costs, {"ours": run})


def _run(step: Callable[[Tensor, Place], Tensor], hidden: Tensor, place: Place, i: int) -> Tensor:
    return step(hidden[i], place)


def absorbed(rows: int) -> tuple[Cost, Cost]:
    """The two products of every head around absorbed attention."""
    weight, flops = 2 * HEADS * LATENT, 2 * rows * HEADS * LATENT
    return (
        Cost(weight * NOPE + 2 * rows * HEADS * (NOPE + LATENT), flops * NOPE),
        Cost(weight * VALUE + 2 * rows * HEADS * (VALUE + LATENT), flops * VALUE),
    )
