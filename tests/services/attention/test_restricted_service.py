"""What a request forbids, and log-probabilities of its prompt, through the real service of a tiny replica."""

import json

import numpy as np
import pytest
import torch

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import AttentionServiceStub, add_AttentionServiceServicer_to_server
from services.attention.service import AttentionServicer
from services.checkpoint.markers import Marker
from services.checkpoint.vocabulary import load_tokens
from services.runtime.channels import open_channel
from services.runtime.errors import InvalidRequest
from services.runtime.server import start_server
from tests.generations import generate

PROMPT = list(range(10, 30))


@pytest.fixture(scope="session")
def table(tiny_checkpoint):
    size = json.loads((tiny_checkpoint / "config.json").read_text())["text_config"]["vocab_size"]
    return load_tokens(tiny_checkpoint, size)


@pytest.fixture
async def decode(start_rig):
    """Sends a prompt and what was generated to a replica; returns all messages of the answer."""
    rig = await start_rig()
    servicer = AttentionServicer(rig.replica.engine, rig.replica.constraints, rig.replica.limits, "decode")
    server, address = await start_server(
        lambda server: add_AttentionServiceServicer_to_server(servicer, server), "127.0.0.1:0"
    )
    async with open_channel(address) as channel:
        stub = AttentionServiceStub(channel)

        async def send(num_tokens, *, prompt=PROMPT, generated=(), **sampling):
            start = pb.GenerationStart(
                prompt=pb.Prompt(token_ids=[*prompt, *generated], num_prompt_tokens=len(prompt)),
                sampling=pb.Sampling(**{"top_p": 1, "max_new_tokens": num_tokens, **sampling}),
            )
            return [message async for message in generate(stub, start)]

        yield send
    await server.stop(None)


def tokens_of(messages):
    return [token_id for message in messages for token_id in message.token_ids]


async def test_only_allowed_tokens_come(decode):
    tokens = tokens_of(await decode(20, temperature=2.0, seed=5, allowed_token_ids=[40, 41, 42]))
    assert len(tokens) == 20
    assert set(tokens) == {40, 41, 42}


async def test_no_bad_word_is_completed(decode):
    free = tokens_of(await decode(12))
    banned = [pb.TokenSequence(token_ids=free[3:6]), pb.TokenSequence(token_ids=free[8:9])]
    tokens = tokens_of(await decode(12, bad_words=banned))
    assert tokens[:5] == free[:5]
    assert tokens[5] != free[5]
    assert free[8] not in tokens or free.index(free[8]) < 5
    assert not any(tokens[at : at + 3] == free[3:6] for at in range(len(tokens)))


async def test_tokens_outside_the_vocabulary_are_refused(decode, table):
    for fields in ({"allowed_token_ids": [table.size]}, {"bad_words": [pb.TokenSequence(token_ids=[table.size])]}):
        with pytest.raises(InvalidRequest):
            await decode(3, **fields)


@pytest.mark.parametrize("form", [{}, {"json_object": True}], ids=["free", "json"])
@pytest.mark.parametrize("budget", [0, 1, 7, 40])
async def test_a_thought_is_closed_inside_its_budget(decode, table, budget, form):
    think_end = table.marker_ids[Marker.THINK_END]
    constraint = pb.Constraint(starts_in_reasoning=True, **form)
    # Nothing but the budget closes it: the marker itself is as unlikely as can be.
    drawn = {"temperature": 1.5, "seed": 3, "logit_bias": {think_end: -100.0}, "constraint": constraint}
    drawn["stop_token_ids"] = [table.marker_ids[Marker.END]]
    tokens = tokens_of(await decode(100, max_thinking_tokens=budget, **drawn))
    ended = tokens.index(think_end)
    assert ended <= budget
    assert ended >= budget - 3
    thought = b"".join(table.ordinary[token_id] for token_id in tokens[:ended])
    if budget >= 24:
        assert not is_cut(thought)
    # Any replica goes on after any token as if nothing had happened.
    for at in {1, ended, min(ended + 1, len(tokens) - 1)} - {0}:
        again = tokens_of(await decode(100, generated=tokens[:at], max_thinking_tokens=budget, **drawn))
        assert [*tokens[:at], *again] == tokens


def is_cut(text):
    """Whether the last character is incomplete."""
    tail = text[-4:]
    starts = [at for at, byte in enumerate(tail) if byte >= 0xC0]
    if not starts:
        return False
    first = tail[starts[-1]]
    length = 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2
    return len(tail) - starts[-1] < length


async def test_prompt_logprobs_are_those_of_the_model(decode, reference):
    prompt = [11, 300, 5, 77, 42, 9, *range(50, 120)]
    messages = await decode(2, prompt=prompt, num_prompt_logprobs=3, num_top_logprobs=1)
    scores = messages[0].prompt_logprobs
    assert len(scores) == len(prompt) - 1
    assert not any(message.prompt_logprobs for message in messages[1:])
    expected = torch.log_softmax(reference.logits(prompt).double(), -1)
    for at, score in enumerate(scores):
        assert score.logprob == pytest.approx(float(expected[at, prompt[at + 1]]), abs=2e-3)
        best = expected[at].topk(3)
        assert np.allclose(score.top_logprobs, best.values, atol=2e-3)
    # A second time no block is found in the cache, and the scores are the same bits.
    again = (await decode(2, prompt=prompt, num_prompt_logprobs=3, num_top_logprobs=1))[0]
    assert [one.logprob for one in again.prompt_logprobs] == [one.logprob for one in scores]
    assert tokens_of(await decode(2, prompt=prompt)) == tokens_of(messages)
