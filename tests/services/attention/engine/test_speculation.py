"""Drafts change no token, whatever they say: greedy or seeded, constrained, penalised, beside others, after a loss."""

import asyncio
import json
import random

import pytest
import torch

import kernels
from protos import attention_pb2 as pb
from services.attention.engine.draft_lengths import DraftLengths
from services.attention.engine.drafts import ContextDrafts, Draft
from services.attention.engine.generation import Generation, Tokens
from services.attention.engine.speculation import Speculation
from services.attention.engine.turns import Chunk
from services.attention.sampling.on_host import SamplingParams
from services.checkpoint.block_names import BlockNames

pytestmark = pytest.mark.skipif(
    not kernels.describe(torch.device("cpu"))["linear"].startswith("native"),
    reason="needs the native kernels: elsewhere nothing is drafted",
)

SETTINGS = {"dtype": "bfloat16", "num_blocks": 256, "step_tokens": 256}
SAMPLINGS = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "top_p": 0.95, "seed": 5},
    "penalised": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "logit_bias": {9: 2.0}},
    "stopped": {"temperature": 1.0, "seed": 8, "stop_token_ids": tuple(range(0, 320, 40)), "min_new_tokens": 6},
}
OBJECT = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"enum": ["red", "green"]}}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "json": pb.Constraint(json_schema=json.dumps(OBJECT), starts_in_reasoning=True),
    "call": pb.Constraint(
        tools=[pb.CallableTool(name="look_up", parameters_json=json.dumps(OBJECT))], tool_use=pb.TOOL_USE_REQUIRED
    ),
}


@pytest.fixture
def draft_from(monkeypatch):
    """Lets every step verify drafts of six tokens: those of the texts given, with mistakes."""

    def use(texts, seed=0, mistakes=0.2):
        rng = random.Random(seed)

        def find(drafts, most):
            known = list(drafts._token_ids)
            text = next((text for text in texts if text[: len(known)] == known), known)
            following = [*text[len(known) :], *rng.choices(range(320), k=6)][: min(6, most)]
            return Draft([rng.randrange(320) if rng.random() < mistakes else one for one in following], 0.9)

        monkeypatch.setattr(ContextDrafts, "find", find)
        monkeypatch.setattr(DraftLengths, "choose", lambda self, num, drafts: [most for _, most in drafts])

    return use


def text(seed, length=40):
    return random.Random(seed).choices(range(320), k=length)


async def drawn(request):
    """Tokens with log-probabilities, and the largest number of tokens that one step gave."""
    choices, most = [], 0
    while True:
        event = await request.next()
        assert isinstance(event, Tokens), event
        choices += [(choice.token_id, choice.logprob, choice.top_logprobs) for choice in event.choices]
        most = max(most, len(event.choices))
        if event.finish_reason is not None:
            return choices, event.finish_reason, most


async def answer(rig, prompt, num_tokens=50, **sampling):
    return await drawn(rig.submit(prompt, num_tokens, num_top_logprobs=2, **sampling))


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("prompt_length", [1, 40, 63])
async def test_any_draft_gives_the_same_bits(start_rig, draft_from, sampling, prompt_length):
    plain, drafting = await start_rig(draft_tokens=0, **SETTINGS), await start_rig(**SETTINGS)
    prompts = [text(seed, prompt_length) for seed in range(4)]
    expected = [await answer(plain, prompt, **sampling) for prompt in prompts]
    answers = [[*prompt, *(choice[0] for choice in one[0])] for prompt, one in zip(prompts, expected, strict=True)]
    draft_from(answers)
    alone = [await answer(drafting, prompt, **sampling) for prompt in prompts]
    together = await asyncio.gather(*(answer(drafting, prompt, **sampling) for prompt in prompts))
    for found in (alone, together):
        assert [one[:2] for one in found] == [one[:2] for one in expected]
        assert max(one[2] for one in found) > 2


@pytest.mark.parametrize("wanted", CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
@pytest.mark.parametrize("budget", [55, 100])
@pytest.mark.slow
async def test_constrained_answers_stay_the_same(start_rig, draft_from, ask, wanted, budget):
    plain, drafting = await start_rig(draft_tokens=0, **SETTINGS), await start_rig(**SETTINGS)
    expected = [await (await ask(plain, wanted, budget, seed=seed)).tokens() for seed in range(3)]
    draft_from([[*range(10, 30), *answer] for answer in expected])
    requests = [await ask(drafting, wanted, budget, seed=seed) for seed in range(3)]
    assert [await request.tokens() for request in requests] == expected


async def test_a_token_that_stands_for_another_one_is_the_last_of_its_step(start_rig, draft_from, ask):
    """So a caller knows which it was, although a message says it of all its tokens together."""
    plain, drafting = await start_rig(draft_tokens=0, **SETTINGS), await start_rig(**SETTINGS)
    expected = [await (await ask(plain, CONSTRAINTS["json"], 55, seed=seed)).tokens() for seed in range(3)]
    draft_from([[*range(10, 30), *answer] for answer in expected], mistakes=0.0)
    num_cut = 0
    for seed in range(3):
        request = await ask(drafting, CONSTRAINTS["json"], 55, seed=seed)
        finish = None
        while finish is None:
            event = await request.next()
            finish = event.finish_reason
            num_cut += event.choices[-1].is_cut
            assert not any(choice.is_cut for choice in event.choices[:-1])
    assert num_cut > 0


async def test_a_stream_that_was_drafted_goes_on_elsewhere(start_rig, draft_from):
    plain, here = await start_rig(draft_tokens=0, **SETTINGS), await start_rig(**SETTINGS)
    expected, _, _ = await answer(plain, text(1))
    tokens = [choice[0] for choice in expected]
    draft_from([[*text(1), *tokens]])
    for num_done in (1, 17, 49):
        request = here.submit([*text(1), *tokens[:num_done]], 50, num_prompt=40, num_top_logprobs=2)
        assert (await drawn(request))[0] == expected[num_done:]


async def test_an_engine_short_of_blocks_drafts_within_those_it_has(start_rig, draft_from):
    plain, tight = await start_rig(draft_tokens=0, **SETTINGS), await start_rig(**{**SETTINGS, "num_blocks": 14})
    prompts = [text(seed) for seed in range(6)]
    expected = [await answer(plain, prompt) for prompt in prompts]
    draft_from([[*prompt, *(c[0] for c in one[0])] for prompt, one in zip(prompts, expected, strict=True)])
    found = await asyncio.gather(*(answer(tight, prompt) for prompt in prompts))
    assert [one[:2] for one in found] == [one[:2] for one in expected]


async def test_repetition_is_drafted_from_the_context_alone(start_rig, monkeypatch):
    """The real search; a greedy tiny model soon repeats itself."""
    monkeypatch.setattr(DraftLengths, "choose", lambda self, num, drafts: [most for _, most in drafts])
    plain, drafting = await start_rig(draft_tokens=0, **SETTINGS), await start_rig(**SETTINGS)
    expected, found = await answer(plain, [7] * 20, 150), await answer(drafting, [7] * 20, 150)
    assert found[:2] == expected[:2]
    assert found[2] > 3


def stream(**how):
    """A generation whose next token a step gives."""
    return Generation(
        request_id="test",
        token_ids=text(3, 21),
        num_prompt=20,
        sampling=SamplingParams(),
        max_tokens=100,
        names=BlockNames(b"root", 16),
        sink=lambda event: None,
        block_ids=[0, 1, 2],
        num_computed=20,
        **how,
    )


@pytest.mark.parametrize(("room", "lengths"), [(20, [6, 6, 6]), (7, [6, 1, 0]), (0, [0, 0, 0]), (-2, [0, 0, 0])])
def test_a_step_has_no_more_drafts_than_room(draft_from, room, lengths):
    """Less than none where more streams run than a step has tokens."""
    draft_from([])
    plan = Speculation(8, 16).add([Chunk(stream(), 1) for _ in range(3)], room)
    assert [len(chunk.draft) for chunk in plan] == lengths


def test_nothing_is_drafted_after_the_one_token_of_a_hand_over(draft_from):
    draft_from([])
    plan = Speculation(8, 16).add([Chunk(stream(hand_over=True), 1), Chunk(stream(), 1)], 20)
    assert [len(chunk.draft) for chunk in plan] == [0, 6]


async def test_the_setting_turns_it_off(start_rig, draft_from):
    rig = await start_rig(draft_tokens=0, **SETTINGS)
    draft_from([text(3)])
    assert (await answer(rig, text(3, 20)))[2] == 1
