"""Log-probabilities on the chat dialect: which tokens have them, in which chunk, through hand-overs too."""

import pytest

from gateway.request.generation import Generation, Start
from protos import attention_pb2 as pb
from tests.gateway.dialects.sdk_types import check_completion
from tests.gateway.streams import stream_chat

CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    "<|tool_calls_section_end|>"
)
TOOL = {"type": "function", "function": {"name": "f"}}
INSTANT = {"thinking": {"type": "disabled"}}


def content_ids(site, text):
    return site.vocabulary.encode(text)


@pytest.mark.parametrize("num_at_once", [1, 4, 1000])
@pytest.mark.parametrize(
    ("fields", "answer", "content"),
    [
        pytest.param({}, "Why?</think>Hello, wörld! 👋<|im_end|>", "Hello, wörld! 👋", id="thinking"),
        pytest.param(INSTANT, "Hi<|im_end|>", "Hi", id="instant"),
        pytest.param({}, "only thoughts<|im_end|>", "", id="only-thoughts"),
        pytest.param({}, "</think><|im_end|>", "", id="empty"),
        pytest.param({"tools": [TOOL]}, "</think>Look." + CALL + "<|im_end|>", "Look.", id="call"),
        pytest.param({"stop": "STOP"}, "</think>abcSTOPdef<|im_end|>", "abc", id="stop-string-left-out"),
        pytest.param({"stop": "xyz"}, "</think>abcxy<|im_end|>", "abcxy", id="held-back-then-shown"),
    ],
)
async def test_only_tokens_of_the_content(site, fields, answer, content, num_at_once):
    site.say(answer)
    site.decodes[0].num_at_once = num_at_once
    whole = check_completion((await site.chat(logprobs=True, top_logprobs=3, **fields)).json())
    (choice,) = whole.choices
    assert choice.message.content == content
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens) == content.encode()
    assert len(tokens) == len(content_ids(site, content))
    first = len(site.vocabulary.encode_with_special(answer[: answer.index(content)])) if content else 0
    assert [token.logprob for token in tokens] == [-(first + i) / 4 for i in range(len(tokens))]
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.top_logprobs[0].bytes == token.bytes for token in tokens)
    streamed = await stream_chat(site.http, logprobs=True, top_logprobs=3, **fields)
    assert streamed.logprobs.get(0, []) == [token.model_dump() for token in tokens]


async def test_a_chunk_carries_the_tokens_that_begin_in_its_text(site):
    site.say("</think>a👋b<|im_end|>")
    streamed = await stream_chat(site.http, logprobs=True)
    shown = [
        (chunk["choices"][0]["delta"]["content"], len((chunk["choices"][0]["logprobs"] or {"content": []})["content"]))
        for chunk in streamed.chunks
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content")
    ]
    assert sum(num for _, num in shown) == len(content_ids(site, "a👋b"))
    assert all(num for _, num in shown)


async def test_without_alternatives(site):
    whole = check_completion((await site.chat(logprobs=True)).json())
    assert all(token.top_logprobs == [] for token in whole.choices[0].logprobs.content)
    assert whole.choices[0].logprobs.refusal is None


async def test_not_asked_for(site):
    assert (await site.chat(logprobs=False, top_logprobs=0)).json()["choices"][0]["logprobs"] is None
    assert not site.prefills[0].prefills[0].sampling.HasField("num_top_logprobs")


@pytest.mark.parametrize("die_after", [0, 3, 9])
async def test_a_lost_engine_costs_none(start_site, die_after):
    site = await start_site(decodes=2)
    calm = (await site.chat(logprobs=True, top_logprobs=2, seed=3)).json()["choices"][0]["logprobs"]
    for engine in site.decodes[:1]:
        engine.die_after = die_after
        engine.token_s = 0.01
    stormy = (await site.chat(logprobs=True, top_logprobs=2, seed=3)).json()["choices"][0]["logprobs"]
    assert stormy == calm


async def test_the_sdk(site):
    chat = await site.openai.chat.completions.create(
        model="kimi-k2.6", messages=[{"role": "user", "content": "Hi"}], logprobs=True, top_logprobs=20
    )
    assert "".join(token.token for token in chat.choices[0].logprobs.content).startswith("Hello, w")


def test_what_is_kept_of_a_message_is_copied():
    """A message inside another one keeps all of that in memory, and a step's message has the parts of all lanes."""
    generation = Generation(None, None, None, Start([1, 2], (), pb.Sampling(num_top_logprobs=1), None), leads=False)
    one = pb.TokenLogprobs(logprob=-1.0)
    message = pb.GenerateResponse(parts=[pb.GenerationTokens(token_ids=[7], logprobs=[one], prompt_logprobs=[one])])
    generation._take_part(message.parts[0])
    message.parts[0].logprobs[0].logprob = message.parts[0].prompt_logprobs[0].logprob = -9.0
    assert generation.logprobs == generation.prompt_logprobs == [one]
