"""Ask a model one held-out sample through the REST API, and judge the answer.

The model is asked as any client asks it: with URLs of data for pictures, with declared tools, at the sampling settings
that are recommended for the mode. A loop of tools is played with the model's own calls and the tools' prepared returns.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx
import jsonschema

from services.nano.train.sample import Answer, Json, Sample
from services.nano.train.skills import GENERATORS
from services.nano.train.skills.drawing_lots import generator
from services.nano.train.skills.tool_box import call_key
from services.nano.train.skills.tool_loop import draw_whole_loop
from tests.cluster.pictures import data_url, mp4, png

# A loop is examined as a whole.
EXAMINED = {**GENERATORS, "tools_loop": generator("tools_loop", draw_whole_loop)}
MAX_TOKENS = 200
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Verdict:
    """right: all of it. tool: the right tools were called, whatever with. valid: what was formed fits its schema.

    The latter two are None where the sample calls nothing and demands no form.
    """

    right: bool
    tool: bool | None
    valid: bool | None
    answer: Answer


def cases(skill: str, *, thinking: bool) -> Iterator[tuple[int, Sample]]:
    """Held-out samples of one mode with their seeds, without end."""
    seed = 0
    while True:
        sample = EXAMINED[skill]("held_out", seed)
        if sample.thinking == thinking:
            yield seed, sample
        seed += 1


async def examine(http: httpx.AsyncClient, sample: Sample, seed: int, *, greedy: bool) -> Verdict:
    """Ask for the last answer, or in a tool loop for every answer."""
    messages = with_media(sample)
    asked = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    history, verdicts = messages[: asked[-1]], []
    if sample.skill == "tools_loop":
        history = messages[: asked[0]]
        for index in asked[:-1]:
            answer = await ask(http, sample, history, seed, greedy=greedy)
            wanted = messages[index]["tool_calls"]
            verdicts.append(verdict(sample, wanted, sorted(map(call_key, wanted)) == keys(answer), answer))
            if not verdicts[-1].right:
                return verdicts[-1]
            returned = {**messages[index + 1], "tool_call_id": answer.tool_calls[0]["id"]}
            history = [*history, said(answer), returned]
    answer = await ask(http, sample, history, seed, greedy=greedy)
    final = verdict(sample, messages[-1].get("tool_calls", ()), sample.check(answer), answer)
    valid = [v.valid for v in (*verdicts, final) if v.valid is not None]
    return Verdict(final.right, final.tool, all(valid) if valid else None, answer)


def verdict(sample: Sample, wanted: Sequence[Json], right: bool, answer: Answer) -> Verdict:
    names = sorted(call["function"]["name"] for call in wanted)
    called = sorted(call["function"]["name"] for call in answer.tool_calls)
    return Verdict(right, names == called if wanted else None, fits_schemas(sample, answer), answer)


def keys(answer: Answer) -> list[tuple[str, str]]:
    return sorted(map(call_key, answer.tool_calls))


def fits_schemas(sample: Sample, answer: Answer) -> bool | None:
    """Whether all arguments and the demanded JSON fit; None if there is neither."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in sample.tools}
    pairs = [(call["function"]["arguments"], schemas[call["function"]["name"]]) for call in answer.tool_calls]
    if sample.answer_schema is not None:
        pairs.append((answer.content, sample.answer_schema))
    return all(fits(text, schema) for text, schema in pairs) if pairs else None


def fits(text: str, schema: Json) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


async def ask(http: httpx.AsyncClient, sample: Sample, messages: Sequence[Json], seed: int, *, greedy: bool) -> Answer:
    """Send one request. HTTPStatusError if it is refused."""
    response = await http.post("/v1/chat/completions", json=body(sample, messages, seed, greedy=greedy))
    response.raise_for_status()
    message = response.json()["choices"][0]["message"]
    return Answer(message["content"] or "", message.get("reasoning_content") or "", message.get("tool_calls") or ())


def body(sample: Sample, messages: Sequence[Json], seed: int, *, greedy: bool) -> Json:
    """The request: temperature 1.0 with thoughts and 0.6 without, top_p 0.95, as the model card recommends."""
    fields: dict[str, object] = {
        "model": "kimi-k2.6",
        "messages": list(messages),
        "max_tokens": MAX_TOKENS,
        "seed": seed,
        "temperature": 0.0 if greedy else 1.0 if sample.thinking else 0.6,
        "top_p": 0.95,
        "chat_template_kwargs": {"thinking": sample.thinking, "preserve_thinking": sample.preserve_thinking},
    }
    if sample.tools:
        fields["tools"] = list(sample.tools)
    if sample.answer_schema is not None:
        form = {"name": "answer", "schema": sample.answer_schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": form}
    return fields


def with_media(sample: Sample) -> list[Json]:
    """The messages with their pictures and videos as URLs of data."""
    urls = {
        "image_url": iter([data_url(png(image)) for image in sample.images]),
        "video_url": iter([data_url(mp4(video.frames, video.fps), "video/mp4") for video in sample.videos]),
    }

    def part(given: Mapping[str, object]) -> Mapping[str, object]:
        kind = str(given["type"])
        return {**given, kind: {"url": next(urls[kind])}} if kind in urls else given

    return [
        message if isinstance(message["content"], str) else {**message, "content": [*map(part, message["content"])]}
        for message in sample.messages
    ]


def said(answer: Answer) -> Json:
    """The model's answer as the client sends it back."""
    return {
        "role": "assistant",
        "content": answer.content,
        "reasoning_content": answer.reasoning,
        "tool_calls": list(answer.tool_calls),
    }
