"""What the engines are asked: prompt, sampling, ids. Nothing that a client sent gets lost on the way."""

import pytest

from gateway.request.rendering import SEED_STRIDE
from services.tokenizer.vocabulary import Vocabulary

THINKING_PROMPT = "<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>assistant<|im_middle|><think>"
INSTANT_PROMPT = "<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>assistant<|im_middle|><think></think>"


def sampling_fields(site):
    """What the first decode call said, as plain values; floats as they were before they were cut to 32 bits."""
    sampling = site.decodes[0].decodes[0].sampling
    names = [field.name for field, _ in sampling.ListFields()]
    values = {name: getattr(sampling, name) for name in names}
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        pytest.param({}, {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.0}, id="defaults-thinking"),
        pytest.param(
            {"thinking": {"type": "disabled"}},
            {"temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.0},
            id="defaults-instant",
        ),
        pytest.param(
            {"temperature": 0, "top_p": 1, "top_k": 20, "min_p": 0.1},
            {"top_p": 1.0, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.0},
            id="shape",
        ),
        pytest.param(
            {"top_k": -1, "min_p": 0, "presence_penalty": 0, "logit_bias": {}},
            {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.0},
            id="without-effect",
        ),
        pytest.param(
            {"presence_penalty": -2, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
            {
                "temperature": 1.0,
                "top_p": 0.95,
                "presence_penalty": -2.0,
                "frequency_penalty": 0.5,
                "repetition_penalty": 1.1,
            },
            id="penalties",
        ),
        pytest.param(
            {"temperature": None, "top_p": None, "stop": None, "tools": None, "stream_options": None, "n": None},
            {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.0},
            id="null-is-absent",
        ),
    ],
)
async def test_sampling(site, fields, sent):
    assert (await site.chat(**fields)).status_code == 200
    found = sampling_fields(site)
    for name in ("seed", "max_new_tokens", "stop_token_ids", "constraint"):
        found.pop(name)
    assert found == sent
    if site.prefills[0].prefills:
        assert site.prefills[0].prefills[0].sampling == site.decodes[0].decodes[0].sampling


async def test_logit_bias_and_stop_tokens(site):
    await site.chat(logit_bias={"5": -100, "7": 2.5}, stop_token_ids=[3, 9], min_tokens=2)
    sampling = site.decodes[0].decodes[0].sampling
    assert dict(sampling.logit_bias) == {5: -100.0, 7: 2.5}
    assert list(sampling.stop_token_ids) == [3, 9, *site.vocabulary.stop_ids]
    assert sampling.min_new_tokens == 2


async def test_ignore_eos_leaves_only_the_clients_stop_tokens(site):
    (end,) = site.vocabulary.encode_with_special("<|im_end|>")
    site.answer_ids = [1, end, 2, end, 3, 4]
    body = (await site.chat(ignore_eos=True, stop_token_ids=[4])).json()
    assert list(site.decodes[0].decodes[0].sampling.stop_token_ids) == [4]
    assert body["usage"]["completion_tokens"] == 6
    assert body["choices"][0]["finish_reason"] == "stop"


async def test_ignore_eos_runs_to_the_budget(site):
    site.answer_ids = site.vocabulary.encode_with_special("</think>a<|im_end|>bcd")
    body = (await site.chat(ignore_eos=True, max_tokens=5)).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["content"] == "abc"


async def test_a_stop_token_is_counted_and_not_shown(site):
    site.say("</think>ab" + "c")
    body = (await site.chat(stop_token_ids=[site.answer_ids[-1]])).json()
    assert body["choices"][0]["message"]["content"] == "ab"
    assert body["usage"]["completion_tokens"] == len(site.answer_ids)


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        pytest.param({}, 32, id="default"),
        pytest.param({"max_tokens": 5}, 5, id="max-tokens"),
        pytest.param({"max_tokens": 5, "max_completion_tokens": 7}, 7, id="completion-tokens-win"),
        pytest.param({"max_tokens": 7.0}, 7, id="whole-number-with-a-point"),
    ],
)
async def test_budget(start_site, fields, budget):
    site = await start_site(default_max_tokens=32)
    await site.chat(**fields)
    assert site.prefills[0].prefills[0].sampling.max_new_tokens == budget


async def test_the_budget_is_cut_to_the_room_left(site):
    await site.chat(max_tokens=262144)
    request = site.decodes[0].decodes[0]
    assert request.prompt.num_prompt_tokens + request.sampling.max_new_tokens == site.context_tokens


async def test_a_smaller_engine_has_a_smaller_context(site):
    site.decodes[0].load.context_tokens = 128
    await site.reports_of_load()
    await site.chat(max_tokens=262144)
    request = site.decodes[0].decodes[0]
    assert request.prompt.num_prompt_tokens + request.sampling.max_new_tokens == 128


async def test_a_seed_is_kept_and_each_choice_has_its_own(site):
    await site.chat(seed=-1, n=3)
    seeds = {request.sampling.seed for request in site.decodes[0].decodes}
    assert seeds == {(choice * SEED_STRIDE - 1) % 2**64 for choice in range(3)}
    assert {request.sampling.seed for request in site.prefills[0].prefills} == seeds


@pytest.mark.slow
async def test_without_a_seed_there_is_a_new_one_each_time(site):
    await site.chat()
    await site.chat()
    first, second = (request.sampling.seed for request in site.decodes[0].decodes)
    assert first != second
    assert max(first, second) < 2**63


def prompt_text(site, vocabulary: Vocabulary) -> str:
    ids = list(site.decodes[0].decodes[0].prompt.token_ids)[: site.decodes[0].decodes[0].prompt.num_prompt_tokens]
    return b"".join(vocabulary.token_bytes(ids, skip_special=False)).decode()


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        pytest.param({}, THINKING_PROMPT, id="default"),
        pytest.param({"thinking": {"type": "enabled"}}, THINKING_PROMPT, id="enabled"),
        pytest.param({"thinking": {"type": "disabled", "keep": "all"}}, INSTANT_PROMPT, id="disabled"),
        pytest.param({"thinking": {"type": "disabled", "effort": 3}}, INSTANT_PROMPT, id="effort-ignored"),
        pytest.param({"chat_template_kwargs": {"thinking": False}}, INSTANT_PROMPT, id="template"),
        pytest.param({"chat_template_kwargs": {"enable_thinking": False}}, INSTANT_PROMPT, id="template-alias"),
        pytest.param(
            {"chat_template_kwargs": {"thinking": True, "enable_thinking": False}}, THINKING_PROMPT, id="name-wins"
        ),
        pytest.param({"reasoning_effort": "none"}, INSTANT_PROMPT, id="effort-none"),
        pytest.param({"reasoning_effort": "high"}, THINKING_PROMPT, id="effort-high"),
        pytest.param(
            {"reasoning_effort": "none", "thinking": {"type": "enabled"}}, THINKING_PROMPT, id="thinking-wins"
        ),
        pytest.param({"tools": [], "tool_choice": "auto"}, THINKING_PROMPT, id="no-tools"),
    ],
)
async def test_thinking_in_every_spelling(site, fields, prompt):
    site.say("Hello<|im_end|>")
    assert (await site.chat(**fields)).status_code == 200
    assert prompt_text(site, site.vocabulary) == prompt


THREE_NUMBERS = [
    {"role": "user", "content": "Numbers?"},
    {"role": "assistant", "content": "1", "reasoning_content": "215 222"},
    {"role": "user", "content": "More?"},
]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        pytest.param({}, False, id="default"),
        pytest.param({"thinking": {"type": "enabled", "keep": "all"}}, True, id="keep-all"),
        pytest.param({"thinking": {"type": "enabled", "keep": None}}, False, id="keep-null"),
        pytest.param({"thinking": {"type": "disabled", "keep": "all"}}, False, id="keep-is-ignored-when-disabled"),
        pytest.param({"chat_template_kwargs": {"preserve_thinking": True}}, True, id="template"),
        pytest.param(
            {"chat_template_kwargs": {"thinking": False, "preserve_thinking": True}}, True, id="template-as-given"
        ),
    ],
)
async def test_old_reasoning(site, fields, kept):
    site.say("Hello<|im_end|>")
    await site.chat(messages=THREE_NUMBERS, **fields)
    assert ("215 222" in prompt_text(site, site.vocabulary)) == kept


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        pytest.param(
            [{"role": "developer", "content": "Be kind."}],
            "<|im_system|>system<|im_middle|>Be kind.<|im_end|>",
            id="developer-is-system",
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
            "<|im_user|>user<|im_middle|>ab<|im_end|>",
            id="parts",
        ),
        pytest.param([{"role": "user", "content": []}], "<|im_user|>user<|im_middle|><|im_end|>", id="empty-parts"),
        pytest.param(
            [{"role": "user", "content": "", "name": "Ann"}], "<|im_user|>Ann<|im_middle|><|im_end|>", id="name"
        ),
        pytest.param(
            [{"role": "assistant", "content": None, "tool_calls": []}],
            "<|im_assistant|>assistant<|im_middle|><think></think><|im_end|>",
            id="null-content",
        ),
        pytest.param(
            [
                {
                    "role": "assistant",
                    "reasoning": "r",
                    "reasoning_content": "rc",
                    "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": {"a": "ä"}}}],
                },
                {"role": "tool", "tool_call_id": "x", "content": "done"},
            ],
            "<think>r</think><|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
            '{"a": "ä"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
            "<|im_system|>tool<|im_middle|>## Return of functions.f:0\ndone<|im_end|>",
            id="foreign-id-and-object",
        ),
        pytest.param(
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}],
            "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
            id="no-id-no-arguments",
        ),
        pytest.param(
            [{"role": "user", "content": "<|im_end|>"}, {"role": "user", "content": "x"}],
            "<|im_user|>user<|im_middle|><|im_end|><|im_end|><|im_user|>",
            id="typed-marker",
        ),
    ],
)
async def test_messages(site, messages, rendered):
    assert (await site.chat(messages=messages)).status_code == 200
    assert rendered in prompt_text(site, site.vocabulary)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He", "partial": True}]},
        {
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
    ],
    ids=["partial", "continue-final-message"],
)
async def test_a_beginning_is_continued(site, fields):
    site.say("llo<|im_end|>")
    body = (await site.chat(**fields)).json()
    assert prompt_text(site, site.vocabulary).endswith("<|im_assistant|>assistant<|im_middle|><think></think>He")
    assert body["choices"][0]["message"]["content"] == "llo"
    assert body["choices"][0]["message"]["reasoning_content"] == ""


async def test_tools_are_declared_as_sent(site):
    parameters = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer", "minimum": 1}}}
    tools = [{"type": "function", "function": {"name": "f", "description": "Does.", "parameters": parameters}}]
    await site.chat(tools=tools)
    assert "namespace functions {\n// Does.\ntype f = (_: {" in prompt_text(site, site.vocabulary)


async def test_ids_travel_with_every_call(site):
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    response = await site.http.post(
        "/v1/chat/completions",
        json={"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]},
        headers={"X-Request-Id": "mine", "traceparent": parent},
    )
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["x-trace-id"] == "a" * 32
    for engine in site.engines:
        metadata = next(each for each in engine.metadata if each.get("x-request-id"))
        assert (metadata["x-request-id"], metadata["traceparent"]) == ("mine", parent)


@pytest.mark.parametrize("sent", ["", "x" * 129, "with space"])
async def test_odd_request_ids_are_replaced(site, sent):
    given = (await site.http.get("/version", headers={"X-Request-Id": sent})).headers["x-request-id"]
    assert given.startswith("req-")
