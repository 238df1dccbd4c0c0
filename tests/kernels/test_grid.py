"""Sums over experts have the same bits for every order, every grouping and every assignment of experts to shards."""

import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.grid import MAX_STEPS, STEPS, on_grid
from tests.kernels.checks import expert, few

STEP = pytest.mark.parametrize("step_dtype", [torch.float32, torch.bfloat16], ids=str)
LARGEST = {dtype: MAX_STEPS * step / 8 for dtype, step in STEPS.items()}  # of eight terms


def groups(numbers: Sequence[int], draw: random.Random) -> Iterator[list[int]]:
    """Cut a shuffled list at random places."""
    order = list(numbers)
    draw.shuffle(order)
    while order:
        size = draw.randint(1, len(order))
        yield order[:size]
        order = order[size:]


def regrouped(terms: Tensor, draw: random.Random) -> Tensor:
    """Return the sum of terms [terms, ...] in an order and a grouping of its own, rounded to f32."""
    total = torch.zeros(terms.shape[1:], dtype=torch.float64)
    for group in groups(range(len(terms)), draw):
        partial = torch.zeros_like(total)
        for index in group:
            partial += terms[index]
        total += partial
    return total.float()


def spread(count: int, dtype: torch.dtype) -> Tensor:
    """Return numbers [8, count] of every size and sign up to the largest that eight terms may have."""
    low, high = np.log2(STEPS[dtype]) - 30, np.log2(LARGEST[dtype])
    sizes = 2 ** (torch.rand(8, count, dtype=torch.float64) * (high - low) + low)
    return (sizes * torch.randn(8, count).sign()).float()


@STEP
def test_magnitudes_from_the_smallest_to_the_largest(step_dtype):
    terms = on_grid(spread(4000, step_dtype), torch.ones(()), step_dtype)
    draw = random.Random(0)
    expected = regrouped(terms, draw)
    assert all(torch.equal(regrouped(terms, draw), expected) for _ in range(50))


@STEP
def test_large_terms_that_cancel_leave_the_small_ones(step_dtype):
    """Plain float32 and float64 sums fail here: what the large terms swallow depends on the order."""
    numbers = spread(4000, step_dtype)
    numbers[0], numbers[1] = LARGEST[step_dtype], -LARGEST[step_dtype]
    numbers[2:] *= 2.0**-30
    terms, draw = on_grid(numbers, torch.rand(8, 1), step_dtype), random.Random(1)
    terms[1] = -terms[0]
    expected = terms[2:].sum(0).float()
    assert all(torch.equal(regrouped(terms, draw), expected) for _ in range(50))


def test_without_the_grid_such_sums_differ():
    numbers, draw = spread(4000, torch.float32), random.Random(2)
    numbers[0], numbers[1] = LARGEST[torch.float32], -LARGEST[torch.float32]
    assert not all(torch.equal(regrouped(numbers, draw), regrouped(numbers, draw)) for _ in range(20))
    assert not all(torch.equal(regrouped(numbers.double(), draw), regrouped(numbers.double(), draw)) for _ in range(20))


@STEP
def test_a_term_is_rounded_once_and_to_the_nearest_step(step_dtype):
    rows, weights, step = torch.randn(8, 5000), torch.rand(8, 1), STEPS[step_dtype]
    exact = rows.double() * weights.double()
    terms = on_grid(rows, weights, step_dtype)
    assert ((terms / step) == (terms / step).round()).all()
    assert ((terms - exact).abs() <= step / 2).all()
    assert torch.equal(terms, (exact / step).round() * step)


@STEP
def test_past_the_largest_size_a_sum_is_one_of_float64(step_dtype):
    numbers = torch.randn(8, 1000) * LARGEST[step_dtype] * 2.0**20
    terms, draw = on_grid(numbers, torch.ones(()), step_dtype), random.Random(3)
    exact = torch.tensor([math.fsum(column) for column in numbers.T.tolist()], dtype=torch.float64)
    for _ in range(5):
        error = regrouped(terms, draw).double() - exact
        assert (error.abs() <= 2.0**-23 * numbers.abs().sum(0)).all()


def test_what_is_no_number_stays_visible():
    rows = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38])
    for dtype in STEPS:
        terms = on_grid(rows, torch.tensor(2.0), dtype)
        assert terms[0].isnan() and torch.equal(terms[1:3], rows[1:3].double()) and terms[3] > 5e38


@pytest.mark.parametrize("size", [1.0, 2.0**-20, 2.0**12], ids=["ordinary", "tiny", "huge"])
@pytest.mark.slow
def test_experts_may_be_anywhere(kernels, dtype, size):
    """The exact sums of any number of shards add up to the sum of a process that has all experts, bit by bit."""
    num_experts, top_k, hidden = 12, 5, 64
    tensors = [expert(hidden, 32) for _ in range(num_experts)]
    tokens, rounds = few(kernels, [(37, 12)], interpreted=[(9, 2)])[0]
    x = torch.randn(tokens, hidden).to(dtype)
    ids = torch.stack([torch.randperm(num_experts)[:top_k] for _ in range(tokens)]).int()
    weights = torch.rand(tokens, top_k) * size * 2.0 ** torch.randint(-12, 1, (tokens, top_k))
    whole = kernels.pack_experts(tensors)
    expected = kernels.expert_mlp(x, ids, weights, whole, torch.float64)
    assert torch.equal(kernels.expert_mlp(x, ids, weights, whole), expected.float())
    draw = random.Random(4)
    for _ in range(rounds):
        total = torch.zeros_like(expected)
        for shard in groups(range(num_experts), draw):
            local = torch.full((num_experts,), -1, dtype=torch.int32)
            local[shard] = torch.arange(len(shard), dtype=torch.int32)
            packed = kernels.pack_experts([tensors[index] for index in shard])
            total += kernels.expert_mlp(x, local[ids.long()], weights, packed, torch.float64)
        assert torch.equal(total, expected)
