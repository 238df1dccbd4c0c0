"""A token's sum has the same bits with experts in the process and on any shards, over every transport."""

import random

import pytest
import torch

from services.attention.experts.experts import LocalExperts
from services.model.checkpoint import Checkpoint
from services.model.expert_shard import load_expert_shard
from tests.services.attention.experts.dispatching import TRANSPORTS, addresses, connected, dispatch, serve
from tests.services.expert.serving import random_work

NUM_EXPERTS = 16
SIZES = (1, 2, 33)


@pytest.fixture(scope="module")
def local(model) -> LocalExperts:
    return LocalExperts(load_expert_shard(Checkpoint(model), range(NUM_EXPERTS)))


def works(model, dtype):
    """Batches whose routing weights differ by up to 2^40."""
    for tokens in SIZES:
        work = random_work(model, tokens, seed=tokens)
        uneven = work.topk_weights * 2.0 ** torch.randint(-40, 1, work.topk_weights.shape)
        yield work._replace(hidden=work.hidden.to(dtype), topk_weights=uneven)


def placements(num_shards: int) -> list[list[int]]:
    """Assign experts to shards at random, so that some have many and some have one."""
    draw = random.Random(num_shards)
    ids = list(range(NUM_EXPERTS))
    draw.shuffle(ids)
    cuts = sorted(draw.sample(range(1, NUM_EXPERTS), num_shards - 1))
    return [ids[start:end] for start, end in zip([0, *cuts], [*cuts, NUM_EXPERTS], strict=True)]


@TRANSPORTS
@pytest.mark.parametrize("native", [False, True], ids=["python-shard", "native-shard"])
@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
async def test_the_sum_is_that_of_a_process_with_all_experts(stack, model, local, transport, native, num_shards, dtype):
    placement = placements(num_shards)
    servers = serve(stack, model, num_shards, native=native, placement=placement)
    async with connected(model, addresses(servers), transport, placement=placement) as experts:
        for work in works(model, dtype):
            assert torch.equal(await dispatch(experts, work), await dispatch(local, work))


async def test_sums_too_large_for_32_bits_travel_whole(stack, model, local):
    servers = serve(stack, model, 2, native=True)
    async with connected(model, addresses(servers), "unix") as experts:
        for size in (1e3, 1e6, float("inf"), float("nan")):
            work = random_work(model, 5)
            work = work._replace(hidden=work.hidden.bfloat16(), topk_weights=work.topk_weights * size)
            expected = await dispatch(local, work)
            assert not (expected.abs() < 512).all()
            torch.testing.assert_close(await dispatch(experts, work), expected, rtol=0, atol=0, equal_nan=True)
