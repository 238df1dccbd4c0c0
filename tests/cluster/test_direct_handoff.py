"""Hand-offs between replicas of two shards each when there is no store: each shard takes its blocks from its peer."""

import random

import httpx

from protos import attention_pb2 as pb
from tests.cluster.client import TokenClient
from tests.cluster.test_faults import body
from tests.generations import generate

NO_STORE = {"experts": 2, "attention_shards": 2, "settings": {"attention": {"STORE": ""}}}


def prompt(num_tokens, seed):
    return random.Random(seed).choices(range(320), k=num_tokens)


async def test_tokens_are_those_of_the_reference_and_none_is_computed_twice(start_cluster, reference):
    cluster = start_cluster(**NO_STORE)
    async with TokenClient(cluster) as client:
        for num_tokens in (1, 16, 65, 300):
            tokens = prompt(num_tokens, num_tokens)
            sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=8)
            first = await client.prefill(tokens, sampling)
            first.manifest.source = cluster.address("prefill-0")
            assert list(first.manifest.further_sources) == [cluster.address("prefill-0-shard-1")]
            request = pb.GenerationStart(
                prompt=pb.Prompt(token_ids=[*tokens, first.token_id], num_prompt_tokens=num_tokens),
                sampling=sampling,
                manifest=first.manifest,
            )
            responses = [response async for response in generate(client.attention("decode-0"), request)]
            assert responses[0].num_cached_tokens == num_tokens
            answer = [first.token_id, *(token for response in responses for token in response.token_ids)]
            assert answer == reference.generate(tokens, 8)
        await client.idle()


async def test_the_gateway_says_where_the_blocks_are(start_cluster):
    cluster = start_cluster(**NO_STORE)
    shards = ("decode-0", "decode-0-shard-1")
    before = {shard: taken(cluster, shard) for shard in shards}
    async with httpx.AsyncClient(base_url=cluster.url, timeout=120) as client:
        response = await client.post("/v1/chat/completions", json=body(3, stream=False))
        assert response.status_code == 200, response.text
    assert all(taken(cluster, shard) > before[shard] for shard in shards)
    async with TokenClient(cluster) as client:
        await client.idle()


def taken(cluster, process):
    """Blocks that a process took from another replica."""
    begin = 'moonshard_kv_blocks_fetched_total{outcome="from_peer"} '
    lines = [line for line in cluster.metrics(process).splitlines() if line.startswith(begin)]
    return float(lines[0].removeprefix(begin)) if lines else 0.0
