"""A replica on a GPU against one on the CPU: the same greedy tokens, the same seeded ones, whoever else is there."""

import random

import pytest
import torch

from services.runtime.redis_server import RedisServer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the whole engine on it"),
]
LENGTHS = [1, 15, 16, 17, 33, 100]


def prompt(num_tokens, seed=0):
    return random.Random(seed).choices(range(320), k=num_tokens)


async def tokens_of(rig, **sampling):
    requests = [rig.submit(prompt(n, seed=n), 24, **sampling) for n in LENGTHS]
    return [await request.tokens() for request in requests]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.95, "seed": 11}], ids=["greedy", "seeded"])
async def test_tokens_are_those_of_the_cpu(start_rig, sampling):
    on_gpu, on_cpu = await start_rig(device="cuda"), await start_rig(device="cpu")
    assert await tokens_of(on_gpu, **sampling) == await tokens_of(on_cpu, **sampling)


async def test_a_stream_is_the_same_in_every_company(start_rig):
    rig = await start_rig(device="cuda")
    alone = [await rig.submit(prompt(n, seed=n), 24).tokens() for n in LENGTHS]
    assert await tokens_of(rig) == alone


async def test_latent_kv_passes_between_devices(start_rig, tmp_path):
    with RedisServer(tmp_path) as server:
        settings = {"store": (server.url,)}
        prefill = await start_rig(device="cuda", role="prefill", **settings)
        decode = await start_rig(device="cpu", **settings)
        first = prefill.submit(prompt(70), 1, hand_over=True)
        event = await first.handed_over()
        rest = decode.submit([*prompt(70), event.first.choice.token_id], 12, num_prompt=70, tail=event)
        whole = await decode.submit(prompt(70), 12).tokens()
        assert [event.first.choice.token_id, *await rest.tokens()][:12] == whole
