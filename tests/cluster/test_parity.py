"""The distributed system computes exactly what the model defines: greedy tokens equal those of tests/reference.

All in float32, where the only differences are the order of additions. In bfloat16 a sum in another order may round to
the other neighbour and tip a near tie, so there the kernels and layers are compared with a tolerance instead.
"""

import asyncio
import random
from pathlib import Path

import pytest
from redis.asyncio import Redis

from protos import attention_pb2 as pb
from tests.cluster.client import TokenClient
from tests.generations import generate
from tests.reference.model import ReferenceModel

BLOCK_TOKENS = 16

TOPOLOGIES = [
    pytest.param(
        {"experts": 1, "settings": {"attention": {"EXPERT_TRANSPORT": "grpc"}}}, id="one-expert-shard-over-grpc"
    ),
    pytest.param({"experts": 2}, id="two-expert-shards"),
    pytest.param(
        {"experts": 4, "settings": {"attention": {"EXPERT_TRANSPORT": "tcp"}, "expert": {"WIRE_PORT": "0"}}},
        id="four-expert-shards-over-tcp",
    ),
    pytest.param({"experts": 3, "attention_shards": 2}, id="three-expert-shards-two-attention-shards"),
    pytest.param({"experts": 0, "prefills": 0}, id="local-experts-and-no-prefill-replica"),
    pytest.param(
        {"experts": 2, "settings": {"attention": {"EXPERT_TRANSPORT": "unix", "MICRO_BATCH_TOKENS": "2"}}},
        id="raw-frames-and-two-micro-batches",
    ),
]


def prompt(num_tokens, seed=0):
    return random.Random(seed).choices(range(320), k=num_tokens)


@pytest.fixture(scope="session")
def reference(tiny_checkpoint: Path) -> ReferenceModel:
    return ReferenceModel(tiny_checkpoint)


@pytest.fixture(params=TOPOLOGIES, scope="module")
def some_cluster(request, start_cluster):
    return start_cluster(**request.param)


async def test_prompts_of_awkward_lengths(some_cluster, reference):
    async with TokenClient(some_cluster) as client:
        for num_tokens in (1, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 64, 65, 300):
            expected = reference.generate(prompt(num_tokens), 8)
            assert await client.generate(prompt(num_tokens), 8) == expected, f"cold, {num_tokens} tokens"
            assert await client.generate(prompt(num_tokens), 8) == expected, f"after a prefix hit, {num_tokens} tokens"
        await client.idle()


async def test_sixteen_at_once(some_cluster, reference):
    lengths = [1, 5, 15, 16, 17, 31, 32, 33, 40, 64, 65, 77, 100, 128, 130, 161]
    async with TokenClient(some_cluster) as client:
        answers = await asyncio.gather(*(client.generate(prompt(n, seed=n), 12) for n in lengths))
        for n, answer in zip(lengths, answers, strict=True):
            assert answer == reference.generate(prompt(n, seed=n), 12), f"{n} tokens"
        await client.idle()


async def test_seeded_sampling_is_the_same_alone_in_company_and_moved(some_cluster):
    how = {"temperature": 1.0, "top_p": 0.95, "seed": 99}
    async with TokenClient(some_cluster) as client:
        alone = await client.generate(prompt(40), 16, **how)
        others = [client.generate(prompt(20, seed=n), 20, **{**how, "seed": n}) for n in range(15)]
        together, *_ = await asyncio.gather(client.generate(prompt(40), 16, **how), *others)
        assert together == alone
        sampling = pb.Sampling(max_new_tokens=16, **how)
        moved = [token async for token in client.stream(prompt(40), alone[:5], sampling)]
        assert alone[:5] + moved == alone
        assert await client.generate(prompt(40), 16, **{**how, "seed": 98}) != alone
        await client.idle()


async def test_preemption_changes_nothing(start_cluster, reference):
    """Six generations need 36 blocks of 14: they take turns, through the store."""
    settings = {"decode": {"NUM_BLOCKS": "14"}}
    cluster = start_cluster(experts=2, attention_shards=2, settings=settings)
    async with TokenClient(cluster) as client:
        answers = await asyncio.gather(*(client.generate(prompt(50, seed=n), 40) for n in range(6)))
        for n, answer in enumerate(answers):
            assert answer == reference.generate(prompt(50, seed=n), 40)
        await client.idle()


async def test_latents_in_fp8(start_cluster, tiny_checkpoint):
    """Handed over between replicas of two shards each, and found again."""
    reference = ReferenceModel(tiny_checkpoint, fp8_latents=True)
    cluster = start_cluster(experts=2, attention_shards=2, settings={"attention": {"KV_DTYPE": "fp8"}})
    async with TokenClient(cluster) as client:
        for num_tokens in (1, BLOCK_TOKENS, 65, 300):
            expected = reference.generate(prompt(num_tokens), 8)
            assert await client.generate(prompt(num_tokens), 8) == expected, f"cold, {num_tokens} tokens"
            assert await client.generate(prompt(num_tokens), 8) == expected, f"after a prefix hit, {num_tokens} tokens"
        await client.idle()


@pytest.mark.parametrize("of_prefill, of_decode", [("fp8", "auto"), ("auto", "fp8")])
async def test_latents_of_another_form_are_computed_again(start_cluster, tiny_checkpoint, of_prefill, of_decode):
    cluster = start_cluster(settings={"prefill": {"KV_DTYPE": of_prefill}, "decode": {"KV_DTYPE": of_decode}})
    async with TokenClient(cluster) as client:
        tokens = prompt(71, seed=3)
        sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=8)
        first = await client.prefill(tokens, sampling)
        request = decode_start(tokens, first, sampling)
        responses = [response async for response in generate(client.attention("decode-0"), request)]
        assert responses[0].num_cached_tokens == 0
        reference = ReferenceModel(tiny_checkpoint, fp8_latents=of_decode == "fp8")
        answer = [token for response in responses for token in response.token_ids]
        assert answer == reference.generate([*tokens, first.token_id], 7)
        await client.idle()


async def test_a_handoff_computes_no_prompt_token_twice(cluster):
    async with TokenClient(cluster) as client:
        tokens = prompt(71, seed=3)
        sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4)
        first = await client.prefill(tokens, sampling)
        request = decode_start(tokens, first, sampling)
        responses = [response async for response in generate(client.attention("decode-0"), request)]
        assert responses[0].num_cached_tokens == len(tokens)


@pytest.mark.parametrize("seed, damage", list(enumerate(["flipped", "truncated", "swapped", "missing"], start=1000)))
async def test_a_damaged_block_is_computed_again_and_never_used(cluster, reference, seed, damage):
    tokens = prompt(80, seed)  # new to the decode replica, which therefore depends on the store
    expected = reference.generate(tokens, 8)
    sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=8)
    async with TokenClient(cluster) as client:
        first = await client.prefill(tokens, sampling)
        hashes = [block_hash.hex() for block_hash in first.manifest.block_hashes]
        await harm(cluster.store_urls[0], hashes[1], damage, other=hashes[2])
        request = decode_start(tokens, first, sampling)
        responses = [response async for response in generate(client.attention("decode-0"), request)]
        assert responses[0].num_cached_tokens == BLOCK_TOKENS, "what follows a missing block is not used either"
        assert [first.token_id, *(token for r in responses for token in r.token_ids)] == expected
        await client.idle()


def decode_start(tokens: list[int], first: pb.PrefillResponse, sampling: pb.Sampling) -> pb.GenerationStart:
    """Return the request that continues after a prefill."""
    return pb.GenerationStart(
        prompt=pb.Prompt(token_ids=[*tokens, first.token_id], num_prompt_tokens=len(tokens)),
        sampling=sampling,
        manifest=first.manifest,
    )


async def harm(url: str, block_hash: str, damage: str, other: str) -> None:
    """Damage the stored value of a block in Redis."""
    redis = Redis.from_url(url)
    try:
        (key,) = [key async for key in redis.scan_iter(match=f"*{block_hash}*")]
        (other_key,) = [key async for key in redis.scan_iter(match=f"*{other}*")]
        value, other_value = await redis.get(key), await redis.get(other_key)
        harmed = {
            "flipped": value[:-100] + bytes([value[-100] ^ 1]) + value[-99:],
            "truncated": value[: len(value) // 2],
            "swapped": other_value,
            "missing": b"",
        }[damage]
        await (redis.set(key, harmed, ex=60) if harmed else redis.delete(key))
    finally:
        await redis.aclose()


async def test_every_key_in_the_store_has_a_time_to_live(cluster):
    async with TokenClient(cluster) as client:
        await client.generate(prompt(100, seed=77), 40)
    redis = Redis.from_url(cluster.store_urls[0])
    try:
        ttls = [await redis.pttl(key) async for key in redis.scan_iter()]
    finally:
        await redis.aclose()
    assert ttls and all(ttl > 0 for ttl in ttls)
