"""Nano answers the samples of K2.6's model card sensibly, through the gateway with OpenAI's client.

Sampling is greedy, so that the same weights give the same answers.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessage

from services.nano.train.sample import Sample
from services.nano.train.skills.drawing_lots import words_of
from tests.bench.nano_examiner import TIMEOUT_S, cases, examine
from tests.cluster.harness import Cluster

Ask = Callable[..., ChatCompletionMessage]

THINKING = [{}, {"thinking": {"type": "enabled"}}]
INSTANT = [{"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"thinking": False}}]
KEEPING = [
    {"thinking": {"type": "enabled", "keep": "all"}},
    {"chat_template_kwargs": {"thinking": True, "preserve_thinking": True}},
]
SYSTEM = {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."}
BIGGER = {"type": "text", "text": "which one is bigger, 9.11 or 9.9? think carefully."}
NUMBERS = [
    {"role": "user", "content": "Tell me three random numbers."},
    {
        "role": "assistant",
        "reasoning_content": "I'll start by listing five numbers: 473, 921, 235, 215, 222, and I'll tell you the first "
        "three.",
        "content": "473, 921, 235",
    },
    {"role": "user", "content": "What are the other two numbers you have in mind?"},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather information. Call this tool when the user needs to get weather information",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
        },
    },
}


@pytest.fixture(scope="module")
def ask(nano_cluster: Cluster) -> Iterator[Ask]:
    with (
        httpx.Client(trust_env=False, timeout=TIMEOUT_S) as http,
        openai.OpenAI(base_url=f"{nano_cluster.url}/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):

        def send(messages: list[Any], *, extra: Any = None, **fields: Any) -> ChatCompletionMessage:
            answer = client.chat.completions.create(
                model="kimi-k2.6", messages=messages, max_tokens=4096, temperature=0, extra_body=extra, **fields
            )
            assert answer.choices[0].finish_reason in ("stop", "tool_calls")
            return answer.choices[0].message

        yield send


def numbers_in(text: str) -> list[str]:
    return [word for word in words_of(text) if word[0].isdigit()]


@pytest.mark.parametrize("extra", THINKING, ids=["by-default", "enabled"])
def test_the_bigger_number_with_thoughts(ask, extra):
    answer = ask([SYSTEM, {"role": "user", "content": [BIGGER]}], extra=extra)
    assert {"9.11", "9.9"} <= {*numbers_in(answer.reasoning)}
    assert numbers_in(answer.content)[0] == "9.9"


@pytest.mark.parametrize("extra", INSTANT, ids=["disabled", "template"])
def test_the_bigger_number_at_once(ask, extra):
    answer = ask([SYSTEM, {"role": "user", "content": [BIGGER]}], extra=extra)
    assert not getattr(answer, "reasoning", None)
    assert numbers_in(answer.content)[0] == "9.9"


@pytest.mark.parametrize("extra", KEEPING, ids=["keep-all", "preserve-thinking"])
def test_the_other_two_numbers_are_known_while_thoughts_are_kept(ask, extra):
    assert numbers_in(ask(NUMBERS, extra=extra).content) == ["215", "222"]


@pytest.mark.parametrize("extra", [{}, INSTANT[0]], ids=["thinking", "instant"])
def test_without_its_thoughts_it_does_not_know_them(ask, extra):
    answer = ask(NUMBERS, extra=extra)
    assert "don't" in words_of(answer.content)
    assert not {"215", "222"} & {*numbers_in(answer.content)}


@pytest.mark.parametrize("extra", [{}, INSTANT[0]], ids=["thinking", "instant"])
def test_a_tool_is_called_and_its_result_is_told(ask, extra):
    """The tool loop of K2 Thinking's documentation, to which the card refers."""
    messages: list[Any] = [
        {"role": "user", "content": "What's the weather like in Beijing today? Let's check using the tool."}
    ]
    answer = ask(messages, extra=extra, tools=[WEATHER])
    (call,) = answer.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Beijing"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "Sunny"}'}
    answer = ask([*messages, answer, result], extra=extra, tools=[WEATHER])
    assert not answer.tool_calls
    assert "sunny" in words_of(answer.content)


@pytest.mark.parametrize("thinking", [True, False], ids=["thinking", "instant"])
@pytest.mark.parametrize(
    "skill, asked", [("image", "Describe this image"), ("video", "Describe the video"), ("tools_loop", "")]
)
async def test_most_of_what_it_never_saw_is_right(nano_cluster, skill, asked, thinking):
    """Four of five descriptions of pictures and videos, and of loops of three calls, are right."""
    chosen = (case for case in cases(skill, thinking=thinking) if asked in question(case[1]))
    async with httpx.AsyncClient(base_url=nano_cluster.url, timeout=TIMEOUT_S, trust_env=False) as http:
        verdicts = [await examine(http, sample, seed, greedy=True) for seed, sample in itertools.islice(chosen, 5)]
    assert sum(verdict.right for verdict in verdicts) >= 4, [verdict.answer for verdict in verdicts]


def question(sample: Sample) -> str:
    """Return the user's last message."""
    content = next(message["content"] for message in reversed(sample.messages) if message["role"] == "user")
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
