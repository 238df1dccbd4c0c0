"""POST /v1/completions: raw prompts in, raw text out."""

import json

import pytest

from gateway.dialects.completions.answer import LogprobWriter
from gateway.request.answer_model import TokenLogprob
from tests.gateway.dialects.sdk_types import check_text_completion
from tests.gateway.streams import events_of

PATH = "/v1/completions"
SAID = "Hello, wörld! 👋"


@pytest.fixture
async def raw(start_site):
    """A site that says the same to everybody."""
    return await start_site(answer=SAID + "<|im_end|>")


async def complete(site, **fields):
    response = await site.http.post(PATH, json={"model": "kimi-k2.6", "prompt": "Once", "max_tokens": 500, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def streamed(site, **fields):
    body = {"model": "kimi-k2.6", "prompt": "Once", "max_tokens": 500, "stream": True, **fields}
    response = await site.http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    *events, done = events_of(response.content)
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


async def test_the_sdk_reads_both(raw):
    whole = await raw.openai.completions.create(model="kimi-k2.6", prompt="Once", max_tokens=500)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (SAID, "stop")
    assert whole.usage.prompt_tokens == len(raw.vocabulary.encode("Once"))
    stream = await raw.openai.completions.create(model="kimi-k2.6", prompt="Once", max_tokens=500, stream=True)
    pieces = [piece async for piece in stream]
    assert "".join(piece.choices[0].text for piece in pieces) == SAID
    assert pieces[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("num_at_once", [1, 5])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plain"),
        pytest.param({"n": 3, "echo": True}, id="echo"),
        pytest.param({"prompt": ["Once", "Twice"], "n": 2}, id="batch"),
        pytest.param({"prompt": [1, 2, 3], "echo": True}, id="ids"),
        pytest.param({"prompt": [[1], [2, 3]], "stop": "wör"}, id="batch-of-ids"),
        pytest.param({"logprobs": 2}, id="logprobs"),
        pytest.param({"max_tokens": 3, "logprobs": 0}, id="cut"),
        pytest.param({"stop": ["! "], "include_stop_str_in_output": True}, id="stop-stays"),
    ],
)
async def test_stream_equals_whole(raw, fields, num_at_once):
    raw.decodes[0].num_at_once = num_at_once
    whole = check_text_completion(await complete(raw, **fields))
    pieces = await streamed(raw, **fields, stream_options={"include_usage": True})
    assert pieces[-1]["usage"] == whole.usage.model_dump(exclude_none=True)
    assert pieces[-1]["choices"] == []
    for choice in whole.choices:
        mine = [piece["choices"][0] for piece in pieces[:-1] if piece["choices"][0]["index"] == choice.index]
        assert "".join(piece["text"] for piece in mine) == choice.text
        assert [piece["finish_reason"] for piece in mine if piece["finish_reason"]] == [choice.finish_reason]
        logged = [piece["logprobs"] for piece in mine if piece["logprobs"]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            expected = getattr(choice.logprobs, name) if choice.logprobs else []
            assert [item for logprobs in logged for item in logprobs[name]] == expected


async def test_default_budget(raw):
    body = {"model": "kimi-k2.6", "prompt": "Once"}
    assert (await raw.http.post(PATH, json=body)).json()["usage"]["completion_tokens"] == 16


async def test_markers_in_a_text_become_tokens(raw):
    body = await complete(raw, prompt="<|im_user|>user<|im_middle|>Hi<|im_end|>")
    ids = list(raw.prefills[0].prefills[0].prompt.token_ids)
    assert ids == raw.vocabulary.encode_with_special("<|im_user|>user<|im_middle|>Hi<|im_end|>")
    assert body["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize("keep", [False, True])
async def test_special_tokens_of_an_answer(raw, keep):
    raw.say("a<|im_middle|>b</think>c<|im_end|>")
    text = (await complete(raw, skip_special_tokens=not keep))["choices"][0]["text"]
    assert text == ("a<|im_middle|>b</think>c" if keep else "ab</think>c")


async def test_choices_are_ordered_by_prompt(raw):
    body = await complete(raw, prompt=["Once", "Twice and"], n=2, echo=True)
    assert [choice["text"] for choice in body["choices"]] == [f"{p}{SAID}" for p in ["Once"] * 2 + ["Twice and"] * 2]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    num_prompt = sum(len(raw.vocabulary.encode(prompt)) for prompt in ("Once", "Twice and"))
    assert body["usage"]["prompt_tokens"] == num_prompt
    assert body["usage"]["completion_tokens"] == 4 * len(raw.answer_ids)


async def test_the_same_prompt_draws_the_same_wherever_it_stands(raw):
    await complete(raw, prompt=["a", "b", "a"], n=2, seed=5)
    seeds = {}
    for request in raw.decodes[0].decodes:
        seeds.setdefault(tuple(request.prompt.token_ids)[: request.prompt.num_prompt_tokens], []).append(
            request.sampling.seed
        )
    assert len(seeds) == 2
    assert all(len(set(drawn)) == 2 for drawn in seeds.values())


async def test_logprobs(raw):
    logprobs = (await complete(raw, logprobs=1))["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]).startswith("Hello, w")
    assert logprobs["text_offset"][0] == 0
    assert logprobs["token_logprobs"][:3] == [0, -0.25, -0.5]
    assert all(token in top for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))


def test_offsets_count_the_characters_that_are_shown():
    pieces = [b"a", "ö".encode()[:1], "ö".encode()[1:], b"\xf0\x9f", b"b", b"\xff", b"c"]
    text = b"".join(pieces).decode(errors="replace")
    offsets = LogprobWriter().write([TokenLogprob(piece, 0.0, ()) for piece in pieces])["text_offset"]
    assert offsets == [0, 1, 1, 2, 3, 4, 5]
    assert [text[offsets[i]] for i in (0, 4, 6)] == ["a", "b", "c"]


MALFORMED = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt.0"),
    ({"prompt": ["a", ""]}, "prompt.1"),
    ({"prompt": ["a", 1]}, "prompt.1"),
    ({"prompt": [1, "a"]}, "prompt.1"),
    ({"prompt": [-1]}, "prompt.0"),
    ({"prompt": [1.5]}, "prompt.0"),
    ({"prompt": [True]}, "prompt.0"),
    ({"prompt": [1024]}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"model": None}, "model"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"min_tokens": 17, "max_tokens": None}, "min_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": "yes"}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"n": 9}, "n"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [1024]}, "stop_token_ids"),
    ({"logit_bias": {"1024": 1}}, "logit_bias"),
    ({"stream_options": {}}, "stream_options"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
]


@pytest.mark.slow
async def test_malformed_requests_name_their_field(raw):
    wrong = []
    for fields, param in MALFORMED:
        body = {"model": "kimi-k2.6", "prompt": "Once", **fields}
        response = await raw.http.post(PATH, json=body)
        error = response.json().get("error", {})
        if response.status_code != 400 or error["param"] != param or param.rpartition(".")[2] not in error["message"]:
            wrong.append((fields, param, response.status_code, error))
    assert wrong == []
    assert not raw.prefills[0].prefills


async def test_unknown_model_and_long_prompt(raw):
    response = await raw.http.post(PATH, json={"model": "gpt-4", "prompt": "x"})
    assert response.status_code == 404
    response = await raw.http.post(PATH, json={"model": "kimi-k2.6", "prompt": ["x", "\x01\x02" * 2000]})
    assert response.json()["error"]["code"] == "context_length_exceeded"
