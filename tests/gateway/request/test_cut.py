"""An answer of which a token was replaced for want of room says so on every dialect, and so do schemas left out."""

import json

import pytest

from gateway.dialects.chat.request import parse_chat
from gateway.request.constraint import constraint_of
from protos.tokenizer_pb2 import REASONING, RenderResponse
from services.runtime.errors import InvalidRequest

MODEL = "kimi-k2.6"
HI = [{"role": "user", "content": "Hi"}]
CALL = (
    "Hm.</think><|tool_calls_section_begin|><|tool_call_begin|>functions.clock:0<|tool_call_argument_begin|>{}"
    "<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
)
CLOCK = {"type": "function", "function": {"name": "clock"}}
LEFT_OUT = ["tools.clock: properties.a.not: cannot be enforced"]


async def finish_of(site, **fields):
    choice = (await site.chat(tools=[CLOCK], **fields)).json()["choices"][0]
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ["{}"]
    return choice["finish_reason"]


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("fields", [{}, {"parallel_tool_calls": False}], ids=["all-calls", "one-call"])
async def test_a_complete_call_that_was_cut_has_the_reason_length(site, place, fields):
    site.say(CALL)
    assert await finish_of(site, **fields) == "tool_calls"
    for engine in site.engines:
        engine.cut_at = place
    assert await finish_of(site, **fields) == "length"


async def test_a_cut_behind_the_end_does_not_count(site):
    """The tokens behind a stop string come in the same message."""
    site.say("Hm.</think>Hello STOP and so on, for a while<|im_end|>")
    for engine in site.engines:
        engine.num_at_once, engine.cut_at = 1000, len(site.answer_ids) - 2
    choice = (await site.chat(stop="STOP")).json()["choices"][0]
    assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", "STOP")
    assert (await site.chat()).json()["choices"][0]["finish_reason"] == "length"


async def test_a_stop_token_behind_the_last_wanted_call_did_not_end_the_answer(site):
    site.say(CALL)
    site.decodes[0].num_at_once = 1000
    choice = (await site.chat(tools=[CLOCK], parallel_tool_calls=False)).json()["choices"][0]
    assert (choice["finish_reason"], choice["matched_stop"]) == ("tool_calls", None)
    choice = (await site.chat(tools=[CLOCK])).json()["choices"][0]
    assert (choice["finish_reason"], choice["matched_stop"]) == ("tool_calls", site.answer_ids[-1])


async def test_a_cut_is_remembered_over_the_loss_of_a_replica(start_site):
    site = await start_site(decodes=2)
    site.say(CALL)
    for engine in site.decodes:
        engine.cut_at = 2
    site.decodes[0].die_after = len(site.answer_ids) - 3
    # The other one is asked only after the first has died.
    site.decodes[1].load.num_free_blocks = 1
    await site.reports_of_load()
    assert await finish_of(site) == "length"
    assert [engine.is_up for engine in site.decodes] == [False, True]


async def test_other_dialects_say_it_in_their_own_words(site):
    site.say("Hm.</think>Hello<|im_end|>")
    site.prefills[0].cut_at = 0
    message = (await site.http.post("/v1/messages", json={"model": MODEL, "max_tokens": 99, "messages": HI})).json()
    assert message["stop_reason"] == "max_tokens"
    response = (await site.http.post("/v1/responses", json={"model": MODEL, "input": "Hi"})).json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


async def test_an_answer_names_the_keywords_that_are_not_enforced(site):
    site.say("Hm.</think>Hello<|im_end|>")
    assert "moonshard" not in (await site.chat()).json()
    for engine in site.engines:
        engine.left_out = LEFT_OUT
    expected = {"schema_left_out": LEFT_OUT}
    assert (await site.chat(n=2)).json()["moonshard"] == expected
    message = await site.http.post("/v1/messages", json={"model": MODEL, "max_tokens": 99, "messages": HI})
    assert message.json()["moonshard"] == expected
    assert (await site.http.post("/v1/responses", json={"model": MODEL, "input": "Hi"})).json()["moonshard"] == expected
    lines = (await site.chat(stream=True)).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert [chunk.get("moonshard") for chunk in chunks if chunk["choices"][0]["finish_reason"]] == [expected]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_budget_is_called_as_the_client_calls_it(site, field):
    request = parse_chat({"model": MODEL, "messages": HI, field: 3}, max_choices=8).request
    found = constraint_of(request, RenderResponse(parser_state=REASONING))
    assert found.budget_field == field
    site.prefills[0].failure = InvalidRequest(f"{field}: too few", field=field)
    error = (await site.chat(**{field: 3})).json()["error"]
    assert error["param"] == field


async def test_the_engines_know_who_asks(site):
    await site.chat()
    assert site.prefills[0].prefills[0].prompt.tenant == site.decodes[0].decodes[0].prompt.tenant
