"""The examiner of Nano gives full marks for the taught answers, and none for spoilt ones."""

import json

import httpx
import pytest

from services.nano.train.sample import Answer
from tests.bench.nano_examiner import EXAMINED, cases, examine, fits_schemas, with_media

NUM_CASES = 3


def gateway(sample, *, spoil=None):
    """An API that gives the sample's answers in order, changed by `spoil`."""
    answers = [message for message in sample.messages if message["role"] == "assistant"]
    requests = []

    def answer(request):
        body = json.loads(request.content)
        requests.append(body)
        # The number of answers in the request's history is the index of the next one.
        message = {"role": "assistant", **answers[sum(m["role"] == "assistant" for m in body["messages"])]}
        if spoil is not None:
            message = spoil(message)
        return httpx.Response(200, json={"choices": [{"message": message}]})

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://gateway"), requests


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("skill", EXAMINED)
async def test_the_taught_answers_are_right(skill, thinking):
    for (seed, sample), _ in zip(cases(skill, thinking=thinking), range(NUM_CASES), strict=False):
        http, requests = gateway(sample)
        async with http:
            verdict = await examine(http, sample, seed, greedy=False)
        assert verdict.right
        assert verdict.tool in (True, None) and verdict.valid in (True, None)
        assert len(requests) == (4 if skill == "tools_loop" else 1)
        for body in requests:
            assert body["temperature"] == (1.0 if thinking else 0.6)
            assert body["chat_template_kwargs"]["thinking"] == thinking
            assert body.get("tools", []) == list(sample.tools)


@pytest.mark.parametrize("skill", EXAMINED)
async def test_other_answers_are_wrong(skill):
    def spoil(message):
        return {"role": "assistant", "content": "5000", "tool_calls": []}

    _, sample = next(cases(skill, thinking=True))
    http, _ = gateway(sample, spoil=spoil)
    async with http:
        verdict = await examine(http, sample, 0, greedy=False)
    assert not verdict.right


async def test_a_loop_ends_with_its_first_wrong_call():
    def spoil(message):
        calls = [
            {**call, "function": {**call["function"], "arguments": '{"room": "x"}'}} for call in message["tool_calls"]
        ]
        return {**message, "tool_calls": calls}

    _, sample = next(cases("tools_loop", thinking=True))
    http, requests = gateway(sample, spoil=spoil)
    async with http:
        verdict = await examine(http, sample, 0, greedy=False)
    assert (verdict.right, verdict.tool, verdict.valid, len(requests)) == (False, True, False, 1)


async def test_a_client_sends_back_the_ids_that_it_got():
    def spoil(message):
        calls = message.get("tool_calls", ())
        return {**message, "tool_calls": [{**call, "id": f"call_{call['id']}"} for call in calls]}

    _, sample = next(cases("tools_loop", thinking=False))
    http, requests = gateway(sample, spoil=spoil)
    async with http:
        assert (await examine(http, sample, 0, greedy=False)).right
    for message in requests[-1]["messages"]:
        assert message["role"] != "tool" or message["tool_call_id"].startswith("call_functions.")


def test_every_medium_gets_its_url():
    for skill, kind in (("two_images", "image_url"), ("video", "video_url")):
        _, sample = next(cases(skill, thinking=True))
        parts = [
            part
            for message in with_media(sample)
            if not isinstance(message["content"], str)
            for part in message["content"]
        ]
        urls = [part[kind]["url"] for part in parts if part["type"] == kind]
        assert len(urls) == len(set(urls)) == len(sample.images) + len(sample.videos)


def test_unfit_json_is_seen():
    _, sample = next(cases("json", thinking=True))
    for content, fits in ((sample.messages[-1]["content"], True), ("{}", False), ("{", False)):
        assert fits_schemas(sample, Answer(content, "")) is fits
