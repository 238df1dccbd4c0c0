"""What a request wishes of its tokens reaches the engines, whatever the client calls it."""

import pytest

from gateway.dialects.chat.request import parse_chat
from gateway.dialects.messages.request import parse_messages
from gateway.dialects.responses.request import parse_responses
from services.runtime.errors import InvalidRequest

HI = [{"role": "user", "content": "Hi"}]


def chat(**fields):
    return parse_chat({"model": "m", "messages": HI, **fields}, 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_budget": 50},
        {"thinking_token_budget": 50},
        {"thinking_budget_tokens": 50},
        {"thinking": {"type": "enabled", "budget_tokens": 50}},
        {"reasoning": {"max_tokens": 50}},
        {"chat_template_kwargs": {"thinking_budget": 50}},
        {"thinking_budget": 90, "reasoning": {"max_tokens": 50}},
    ],
)
async def test_every_spelling_of_a_thinking_budget(site, fields):
    assert chat(**fields).ignored == ()
    await site.chat(**fields)
    assert [one.sampling.max_thinking_tokens for one in (*site.prefills[0].prefills, *site.decodes[0].decodes)] == [
        50
    ] * 2


async def test_budgets_of_the_other_dialects(site):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    asked = parse_messages(
        {"model": "m", "max_tokens": 2000, "messages": HI, "thinking": thinking}, default_thinking=False
    )
    assert asked.request.sampling.max_thinking_tokens == 1024
    asked = parse_responses({"model": "m", "input": "Hi", "reasoning": {"max_tokens": 30}})
    assert asked.request.sampling.max_thinking_tokens == 30
    await site.chat()
    assert not site.decodes[0].decodes[0].sampling.HasField("max_thinking_tokens")


@pytest.mark.parametrize(
    ("fields", "thinks", "shows"),
    [
        ({"reasoning": {"enabled": False}}, False, False),
        ({"reasoning": {"effort": "none"}}, False, False),
        ({"reasoning": {"exclude": True}}, True, False),
        ({"enable_thinking": False}, False, False),
        ({"enable_thinking": True, "reasoning_effort": "none"}, True, True),
        ({"reasoning_effort": "none"}, False, False),
        ({"reasoning_effort": "max"}, True, True),
    ],
)
def test_every_spelling_of_the_switch(fields, thinks, shows):
    asked = chat(**fields)
    assert (asked.request.conversation.thinking, asked.show_reasoning) == (thinks, shows)


@pytest.mark.parametrize("fields", [{"reasoning_effort": "extreme"}, {"reasoning": {"effort": "extreme"}}])
def test_an_unknown_effort_is_refused(fields):
    with pytest.raises(InvalidRequest, match="effort"):
        chat(**fields)


async def test_words_and_tokens_reach_the_engines(site):
    await site.chat(allowed_token_ids=[5, 6], bad_words=["cat"], priority=-3)
    for request in (*site.prefills[0].prefills, *site.decodes[0].decodes):
        assert list(request.sampling.allowed_token_ids) == [5, 6]
        words = [site.vocabulary.decode(list(word.token_ids)) for word in request.sampling.bad_words]
        assert words == ["cat", " cat"]
        assert request.prompt.priority == -3


async def test_an_answer_says_what_ended_it(site):
    end = site.answer_ids[-1]
    assert (await site.chat()).json()["choices"][0]["matched_stop"] == end
    assert (await site.chat(stop=["wör"])).json()["choices"][0]["matched_stop"] == "wör"
    assert (await site.chat(max_tokens=2)).json()["choices"][0]["matched_stop"] is None


async def test_an_overflow_says_so_in_every_clients_words(site):
    long = "\x01\x02" * 2000
    for path, fields in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long}),
        ("/v1/responses", {"input": long}),
        ("/v1/messages", {"messages": [{"role": "user", "content": long}], "max_tokens": 9}),
    ):
        for stream in (False, True):
            response = await site.http.post(path, json={"model": "kimi-k2.6", "stream": stream, **fields})
            error = response.json()["error"]
            assert response.status_code == 400
            assert f"This model's maximum context length is {site.context_tokens} tokens" in error["message"]
            assert "context_length_exceeded" in error["message"]
            assert error.get("code", "context_length_exceeded") == "context_length_exceeded"


async def test_deltas_name_the_reasoning_that_they_do_not_have(site):
    stream = await site.openai.chat.completions.create(model="kimi-k2.6", messages=HI, stream=True)
    # Without the field these raise AttributeError, as in many a client.
    thoughts = [chunk.choices[0].delta.reasoning_content async for chunk in stream]
    assert "".join(thought or "" for thought in thoughts) == "Let me see."
    assert thoughts[0] is thoughts[-1] is None


async def test_the_list_of_models_has_a_lifecycle(site):
    (model,) = (await site.http.get("/v1/models")).json()["data"]
    assert model["lifecycle"] == "active"
