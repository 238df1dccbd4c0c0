"""Greedy and seeded answers are equal to the bit, wherever the experts and the prompts are computed."""

import pytest
import torch

import kernels
from tests.cluster.layouts import LAYOUTS, VICTIMS, answers, choices
from tests.cluster.test_faults import settle

NUM_ANSWERS = 16

pytestmark = pytest.mark.skipif(
    not kernels.describe(torch.device("cpu"))["linear"].startswith("native"),
    reason="needs the native kernels: only they promise that a row's bits do not depend on the batch",
)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_every_layout_gives_the_same_answers(start_cluster, dtype):
    found = {}
    for layout in LAYOUTS:
        cluster = start_cluster(**choices(layout, dtype))
        how = {"num_tokens": 40, "num_at_once": 8, "victims": VICTIMS.get(layout, ())}
        found[layout] = await answers(cluster, range(NUM_ANSWERS), **how)
        if layout in VICTIMS:
            assert cluster.exit_codes(VICTIMS[layout][0])
            await settle(cluster)
    first = found["in process"]
    assert len({str(answer) for answer in first}) == NUM_ANSWERS
    assert [layout for layout, given in found.items() if given != first] == []
