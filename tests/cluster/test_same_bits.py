"""Greedy and seeded streams in bfloat16 go on with identical tokens when decode replicas are killed under them."""

import pytest
import torch

import kernels
from tests.cluster.losses import BF16_TWICE, answers
from tests.cluster.test_faults import settle

NUM_STREAMS = 32
NUM_TOKENS = 150

pytestmark = pytest.mark.skipif(
    not kernels.describe(torch.device("cpu"))["linear"].startswith("native"),
    reason="needs the native kernels: only they promise that a row's bits do not depend on the batch",
)


async def test_streams_through_kills_of_decode_replicas(start_cluster):
    cluster = start_cluster(**BF16_TWICE)
    how = {"num_tokens": NUM_TOKENS, "num_at_once": 16}
    undisturbed = await answers(cluster, range(NUM_STREAMS), **how)
    assert len({text["content"] + text["reasoning_content"] for text, _, _ in undisturbed}) > NUM_STREAMS / 2
    for victim in ("decode-0", "decode-1"):
        num_ends = len(cluster.exit_codes(victim))
        assert await answers(cluster, range(NUM_STREAMS), victims=[victim], **how) == undisturbed
        assert len(cluster.exit_codes(victim)) > num_ends
    await settle(cluster)
