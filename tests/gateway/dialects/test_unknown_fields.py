"""Fields outside the schemas: refused by name where they mean something elsewhere, else accepted with a warning."""

import pytest
from anthropic.types import message_create_params as anthropic_params
from anthropic.types.beta import message_create_params as anthropic_beta_params
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as responses_params

from gateway.dialects.chat import field_rules as chat_rules
from gateway.dialects.chat.request import parse_chat
from gateway.dialects.chat.schema import ChatCompletionRequest
from gateway.dialects.completions import field_rules as completion_rules
from gateway.dialects.completions.request import parse_completion
from gateway.dialects.completions.schema import CompletionRequest
from gateway.dialects.messages import field_rules as messages_rules
from gateway.dialects.messages.request import parse_messages
from gateway.dialects.messages.schema import MessagesRequest
from gateway.dialects.responses import field_rules as responses_rules
from gateway.dialects.responses.request import parse_responses
from gateway.dialects.responses.schema import ResponsesRequest
from services.runtime.errors import InvalidRequest

HI = [{"role": "user", "content": "Hi"}]


def chat(*, refuse_unknown=False, **fields):
    return parse_chat({"model": "m", "messages": HI, **fields}, 8, refuse_unknown=refuse_unknown)


def completion(*, refuse_unknown=False, **fields):
    body = {"model": "m", "prompt": "Hi", **fields}
    return parse_completion(body, max_choices=8, max_prompts=8, refuse_unknown=refuse_unknown)


def messages(*, refuse_unknown=False, **fields):
    body = {"model": "m", "max_tokens": 9, "messages": HI, **fields}
    return parse_messages(body, default_thinking=False, refuse_unknown=refuse_unknown)


def responses(*, refuse_unknown=False, **fields):
    return parse_responses({"model": "m", "input": "Hi", **fields}, refuse_unknown=refuse_unknown)


def refusal(parse, **fields):
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("parse", "fields", "field", "meant"),
    [
        (chat, {"max_token": 5}, "max_token", "max_tokens"),
        (chat, {"temprature": 1}, "temprature", "temperature"),
        (chat, {"maxTokens": 5}, "maxTokens", "max_tokens"),
        (chat, {"tool-choice": "auto"}, "tool-choice", "tool_choice"),
        (chat, {"stream_options": {"include_usag": True}}, "stream_options.include_usag", "include_usage"),
        (chat, {"messages": [*HI, {"role": "assistant", "tool_call": []}]}, "messages.1.tool_call", "tool_calls"),
        (chat, {"chat_template_kwargs": {"thinkin": False}}, "chat_template_kwargs.thinkin", "thinking"),
        (completion, {"promt_logprobs": 1}, "promt_logprobs", "prompt_logprobs"),
        (messages, {"stop_sequence": ["x"]}, "stop_sequence", "stop_sequences"),
        (messages, {"thinking": {"type": "enabled", "budget_token": 5}}, "thinking.budget_token", "budget_tokens"),
        (responses, {"max_output_token": 5}, "max_output_token", "max_output_tokens"),
        (responses, {"reasoning": {"efort": "low"}}, "reasoning.efort", "effort"),
    ],
)  # fmt: skip
def test_a_typing_error_is_refused_with_the_field_that_was_meant(parse, fields, field, meant):
    error = refusal(parse, **fields)
    assert error.field == field
    assert f"do you mean {meant}?" in error.message


REFUSED = [
    *((chat, name, value) for name, value in (
        ("stop_regex", "a+"), ("bad_words_ids", [[1]]), ("lora_path", "x"), ("best_of", 2), ("use_beam_search", True),
        ("length_penalty", 1.5), ("early_stopping", True), ("return_hidden_states", True), ("return_token_ids", True),
        ("typical_p", 0.5), ("mirostat", 2), ("do_sample", False), ("functions", []), ("cache_salt", "x"),
        ("documents", [{}]), ("echo", True), ("max_new_tokens", 5), ("separate_reasoning", False),
    )),
    *((completion, name, value) for name, value in (
        ("suffix", "x"), ("prompt_embeds", "x"), ("num_beams", 4), ("truncate_prompt_tokens", 5), ("messages", HI),
    )),
    *((messages, name, value) for name, value in (
        ("container", {"id": "c"}), ("mcp_servers", [{}]), ("n", 2), ("response_format", {}), ("stop", ["x"]),
    )),
    *((responses, name, value) for name, value in (
        ("previous_response_id", "r"), ("background", True), ("max_tokens", 5), ("messages", HI), ("stop", "x"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parse", "name", "value"), REFUSED, ids=lambda value: getattr(value, "__name__", None) or str(value)[:24]
)
def test_what_means_something_elsewhere_is_refused_by_name(parse, name, value):
    error = refusal(parse, **{name: value})
    assert error.field == name
    assert error.message.startswith(f"{name} is not supported: ")


@pytest.mark.parametrize(
    ("parse", "fields"),
    [
        (chat, {"best_of": 1, "use_beam_search": False, "length_penalty": 1.0, "return_token_ids": False}),
        (chat, {"modalities": ["text"], "echo": False, "do_sample": True, "functions": None}),
        (completion, {"suffix": "", "tools": []}),
        (messages, {"mcp_servers": [], "container": None}),
        (responses, {"background": False, "previous_response_id": None}),
    ],
)
def test_values_that_ask_for_nothing_pass_in_silence(parse, fields):
    assert parse(**fields).ignored == ()


@pytest.mark.parametrize("parse", [chat, completion, messages, responses])
def test_any_other_field_is_accepted_and_named(parse):
    assert parse(unheard_of=[1], user="u").ignored == ("user", "unheard_of") or parse is messages
    assert "unheard_of" in parse(unheard_of=[1]).ignored
    assert refusal(parse, unheard_of=[1], refuse_unknown=True).field == "unheard_of"


def test_documented_decoration_passes_where_unknown_fields_are_refused():
    assert set(chat(store=True, service_tier="auto", refuse_unknown=True).ignored) == {"store", "service_tier"}
    cached = [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}]
    assert messages(messages=cached, refuse_unknown=True).ignored == ("messages.content.cache_control",)


def test_parts_without_an_effect_are_named():
    change = {"role": "system", "content": [{"type": "tool_addition", "tool": {}}, {"type": "tool_removal"}]}
    thought = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}
    user = {"role": "user", "content": "a"}
    assert set(messages(messages=[user, change, thought, user], refuse_unknown=True).ignored) == {
        "messages.content.tool_addition",
        "messages.content.tool_removal",
        "messages.content.redacted_thinking",
    }
    assert chat(messages=[thought, user]).ignored == ("messages.content.redacted_thinking",)


def test_too_many_unknown_fields_are_refused():
    refusal(chat, **{f"zz{number}qq": 1 for number in range(65)})


async def test_the_answer_names_what_it_ignored(start_site):
    site = await start_site()
    response = await site.chat(unheard_of=1, store=True, **{"ü,\n": 2})
    assert response.status_code == 200
    assert response.headers["x-moonshard-ignored"] == "store, unheard_of, ???"
    assert "x-moonshard-ignored" not in (await site.chat()).headers
    strict = await start_site(unknown_fields="refuse")
    refused = await strict.chat(unheard_of=1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "unheard_of")


DOCUMENTED = [
    (chat_params.CompletionCreateParamsBase, ChatCompletionRequest, chat_rules.RULES),
    (completion_params.CompletionCreateParamsBase, CompletionRequest, completion_rules.RULES),
    (anthropic_params.MessageCreateParamsBase, MessagesRequest, messages_rules.RULES),
    (anthropic_beta_params.MessageCreateParamsBase, MessagesRequest, messages_rules.RULES),
    (responses_params.ResponseCreateParamsBase, ResponsesRequest, responses_rules.RULES),
]


@pytest.mark.parametrize(
    ("documented", "schema", "rules"), DOCUMENTED, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_documented_field_is_served_refused_or_known_to_have_no_effect(documented, schema, rules):
    known = {*schema.model_fields, *rules.refused, *rules.no_effect}
    assert [name for name in documented.__annotations__ if name not in known] == []
