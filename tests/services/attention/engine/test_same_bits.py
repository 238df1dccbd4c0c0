"""In bfloat16 the bits of a token do not depend on how it came to be computed: chunks, company, losses, hand-overs.

Tokens alone would show a difference only where two logits nearly tie, so latent KV and log-probabilities are compared.
"""

import asyncio
import random

import pytest
import torch

import kernels
from services.attention.engine.generation import Tokens

pytestmark = pytest.mark.skipif(
    not kernels.describe(torch.device("cpu"))["linear"].startswith("native"),
    reason="needs the native kernels: only they promise that a row's bits do not depend on the batch",
)

NUM_PROMPT = 150
NUM_TOKENS = 60
BF16 = {"dtype": "bfloat16", "step_tokens": 512}
SAMPLINGS = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "top_p": 0.95, "seed": 5, "presence_penalty": 0.5},
}
EVERY_SAMPLING = pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())


def prompt(num_tokens=NUM_PROMPT, seed=0):
    return random.Random(seed).choices(range(320), k=num_tokens)


async def drawn(request):
    """The tokens of a generation with their log-probabilities."""
    choices = []
    while True:
        event = await request.next()
        assert isinstance(event, Tokens), event
        choices += [(choice.token_id, choice.logprob) for choice in event.choices]
        if event.finish_reason is not None:
            return choices


def ask(rig, done=(), num_tokens=NUM_TOKENS, text=0, num_prompt=NUM_PROMPT, **how):
    tokens = [*prompt(num_prompt, text), *(token_id for token_id, _ in done)]
    return rig.submit(tokens, num_tokens, num_prompt=num_prompt, num_top_logprobs=0, **how)


def latents(rig, request):
    """The latent KV of all computed tokens, [tokens, layers, latent]."""
    cache = rig.engine._shards[0]._cache
    blocks = cache[request.generation.block_ids].transpose(1, 2).flatten(0, 1)
    return blocks[: request.generation.num_computed].clone()


async def run_and_look(rig, request):
    """The rest of a generation, and its latents half-way through it."""
    choices, found = [], None
    while True:
        event = await request.next()
        assert isinstance(event, Tokens), event
        choices += [(choice.token_id, choice.logprob) for choice in event.choices]
        if event.finish_reason is not None:
            return choices, found
        if len(request.generation.token_ids) >= NUM_PROMPT + NUM_TOKENS // 2 and found is None:
            found = await rig.engine.run(_call(lambda: latents(rig, request)))


async def _call(work):
    return work()


@EVERY_SAMPLING
@pytest.mark.parametrize("num_done", [1, 2, 11, 30, 59])
async def test_a_stream_that_goes_on_elsewhere_has_the_same_bits(start_rig, sampling, num_done):
    here, there = await start_rig(**BF16), await start_rig(**BF16)
    undisturbed = await drawn(ask(here, **sampling))
    assert len(undisturbed) == NUM_TOKENS
    assert await drawn(ask(there, undisturbed[:num_done], **sampling)) == undisturbed[num_done:]


@pytest.mark.parametrize("step_tokens", [3, 16, 33, 100])
async def test_latents_do_not_depend_on_the_size_of_a_step(start_rig, step_tokens):
    whole = await start_rig(**BF16)
    choices, found = await run_and_look(whole, ask(whole))
    in_chunks = await start_rig(**{**BF16, "step_tokens": step_tokens})
    again = await start_rig(**{**BF16, "step_tokens": step_tokens})
    for rig, num_done in ((in_chunks, 0), (again, 40)):
        rest, latents_there = await run_and_look(rig, ask(rig, choices[:num_done]))
        assert rest == choices[num_done:]
        assert same_bits(latents_there, found)


def same_bits(one, other):
    """Whether as many tokens as both have are equal."""
    count = min(len(one), len(other))
    assert count > NUM_PROMPT + 20
    return torch.equal(one[:count].view(torch.int16), other[:count].view(torch.int16))


@EVERY_SAMPLING
async def test_preemption_changes_no_bit(start_rig, sampling):
    """Six generations of 14 blocks each take turns in 40, without a store: what is taken away is computed again."""
    roomy, tight = await start_rig(num_blocks=128, **BF16), await start_rig(num_blocks=40, **BF16)
    alone = [await drawn(ask(roomy, text=n, **sampling)) for n in range(6)]
    together = await asyncio.gather(*(drawn(ask(tight, text=n, **sampling)) for n in range(6)))
    assert together == alone


@pytest.mark.parametrize("num_prompt", [1, 63, 64, 65, 97, 129])
async def test_a_prefix_hit_changes_no_bit(start_rig, num_prompt):
    """A prompt's last token alone is a chunk of the prompt, too."""
    rig = await start_rig(**BF16)
    cold = await drawn(ask(rig, num_tokens=10, num_prompt=num_prompt))
    assert await drawn(ask(rig, num_tokens=10, num_prompt=num_prompt)) == cold


async def test_an_answer_that_became_a_prompt_is_not_mistaken_for_one(start_rig):
    """The next turn computes the answer's tokens as a prompt, whether a replica remembers them or not."""
    rig, fresh = await start_rig(**BF16), await start_rig(**BF16)
    answer = [token_id for token_id, _ in await drawn(ask(rig))]
    turn = [*prompt(), *answer, 7, 8, 9]
    requests = [each.submit(turn, 20, num_top_logprobs=0) for each in (rig, fresh)]
    first = await requests[0].next()
    assert first.num_cached == NUM_PROMPT // 16 * 16
    choices = [(choice.token_id, choice.logprob) for choice in first.choices] + await drawn(requests[0])
    assert choices == await drawn(requests[1])


async def test_generated_blocks_are_found_by_the_replica_that_goes_on(start_rig, store):
    """Through the store: nothing but the last, partly filled block is computed again."""
    here, there = await start_rig(store=store, **BF16), await start_rig(store=store, **BF16)
    undisturbed = await drawn(ask(here))
    request = ask(there, undisturbed[:50])
    first = await request.next()
    assert request.generation.milestones.started_s
    choices = [(choice.token_id, choice.logprob) for choice in first.choices] + await drawn(request)
    assert choices == undisturbed[50:]
    assert first.num_cached == NUM_PROMPT
