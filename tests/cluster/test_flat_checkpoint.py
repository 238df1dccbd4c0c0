"""A language model alone, in the spelling of transformers 5, through every process."""

import random

import httpx

from tests.cluster.client import TokenClient
from tests.flat_checkpoint import write_flat_checkpoint
from tests.reference.model import ReferenceModel


async def test_tokens_equal_those_of_the_wrapped_model(start_cluster, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat") / "checkpoint"
    write_flat_checkpoint(tiny_checkpoint, folder)
    cluster = start_cluster(model=folder, experts=2)
    # Longer than the 128 positions that are not stretched.
    prompt = random.Random(5).choices(range(320), k=200)
    async with TokenClient(cluster) as client:
        assert await client.generate(prompt, 12) == ReferenceModel(tiny_checkpoint).generate(prompt, 12)
        await client.idle()
    question = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "temperature": 0}
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        answer = (await http.post("/v1/chat/completions", json=question | {"model": model})).json()
    assert answer["usage"]["prompt_tokens"] > 8
    assert answer["usage"]["completion_tokens"] > 0
