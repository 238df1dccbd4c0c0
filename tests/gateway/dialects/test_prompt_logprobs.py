"""Log-probabilities of prompts and of every token that counts, in the forms that lm-eval and vLLM's clients read."""

import json

import pytest

from tests.gateway.streams import events_of

PATH = "/v1/completions"
SAID = "Hello, wörld!"


@pytest.fixture
async def raw(start_site):
    """A site whose engines say some text."""
    return await start_site(answer=f"{SAID}<|im_end|>")


async def complete(site, **fields):
    response = await site.http.post(PATH, json={"model": "kimi-k2.6", "prompt": "Once upon", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def loglikelihood(choice, context_len):
    """The sum of the continuation's log-probabilities and whether it is greedy, exactly as lm-eval computes both."""
    logprobs = choice["logprobs"]["token_logprobs"][context_len:-1]
    tops = choice["logprobs"]["top_logprobs"][context_len:-1]
    is_greedy = all(logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True))
    return sum(logprobs), is_greedy


async def test_loglikelihood_of_lm_eval(raw):
    contexts, continuations = [[40, 41, 42], [43]], [[50, 51], [52]]
    prompts = [context + rest for context, rest in zip(contexts, continuations, strict=True)]
    body = await complete(raw, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234)
    for choice, prompt, context in zip(body["choices"], prompts, contexts, strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(prompt) + 1
        assert choice["logprobs"]["token_logprobs"][0] is choice["logprobs"]["top_logprobs"][0] is None
        # The scripted engines give token i of a prompt -i, and -i/2 to the likeliest one in its place.
        assert loglikelihood(choice, len(context)) == (-sum(range(len(context), len(prompt))), False)
    # Each prompt was computed by the replica that goes on with it.
    assert not any(engine.prefills for engine in raw.prefills)


async def test_echoed_text_and_offsets_agree(raw):
    (choice,) = (await complete(raw, echo=True, logprobs=2))["choices"]
    logprobs, text = choice["logprobs"], choice["text"]
    shown = [(token, offset) for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True)]
    whole = [(token, offset) for token, offset in shown if "�" not in token and token != "<|im_end|>"]
    assert all(text[offset : offset + len(token)] == token for token, offset in whole)
    assert text == f"Once upon{SAID}"


@pytest.mark.parametrize("fields", [{}, {"stop": ["wör"]}, {"max_tokens": 3}, {"skip_special_tokens": False}])
async def test_there_are_as_many_logprobs_as_tokens(raw, fields):
    body = await complete(raw, logprobs=0, **fields)
    assert len(body["choices"][0]["logprobs"]["tokens"]) == body["usage"]["completion_tokens"]
    response = await raw.http.post(PATH, json={"model": "m", "prompt": "Once", "logprobs": 0, "stream": True, **fields})
    assert response.status_code == 404
    body = {"model": "kimi-k2.6", "prompt": "Once upon", "logprobs": 0, "stream": True, **fields}
    raw_stream = (await raw.http.post(PATH, json={**body, "stream_options": {"include_usage": True}})).content
    *pieces, _ = events_of(raw_stream)
    parsed = [json.loads(piece) for piece in pieces]
    choices = [choice for piece in parsed for choice in piece["choices"]]
    num_tokens = sum(len(choice["logprobs"]["tokens"]) for choice in choices if choice["logprobs"])
    assert num_tokens == parsed[-1]["usage"]["completion_tokens"]


async def test_an_echo_streams_with_its_logprobs(raw):
    body = {"model": "kimi-k2.6", "prompt": "Once upon", "logprobs": 1, "echo": True, "max_tokens": 2}
    whole = await complete(raw, **body)
    *pieces, _ = events_of((await raw.http.post(PATH, json={**body, "stream": True})).content)
    choices = [choice for piece in pieces for choice in json.loads(piece)["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    for name, values in whole["choices"][0]["logprobs"].items():
        streamed = [value for choice in choices if choice["logprobs"] for value in choice["logprobs"][name]]
        assert streamed == values


async def test_an_echo_alone_has_no_answer(raw):
    fields = {"prompt": [[40, 41], [43]], "echo": True, "logprobs": 1, "max_tokens": 0, "stop": ["x"]}
    body = await complete(raw, **fields)
    for choice, prompt in zip(body["choices"], fields["prompt"], strict=True):
        assert choice["text"] == raw.vocabulary.decode(prompt)
        assert (choice["finish_reason"], choice["matched_stop"]) == ("length", None)
        assert choice["logprobs"]["token_logprobs"] == [None, -1.0][: len(prompt)]
    assert body["usage"]["completion_tokens"] == 0
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] == 3
    asked = {"model": "kimi-k2.6", **fields, "stream": True, "stream_options": {"include_usage": True}}
    *pieces, _ = events_of((await raw.http.post(PATH, json=asked)).content)
    parsed = [json.loads(piece) for piece in pieces]
    for index, choice in enumerate(body["choices"]):
        own = [one for piece in parsed for one in piece["choices"] if one["index"] == index]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert own[-1]["finish_reason"] == "length"
        assert own[0]["logprobs"] == choice["logprobs"]
    assert parsed[-1]["usage"] == body["usage"]


async def test_prompt_logprobs_have_vllms_form(raw):
    (choice, other) = (await complete(raw, prompt=[40, 41, 42], prompt_logprobs=2, n=2))["choices"]
    first, second, third = choice["prompt_logprobs"]
    assert first is None
    assert second["41"] == {"logprob": -1.0, "rank": None, "decoded_token": raw.vocabulary.decode([41])}
    assert second["7"]["rank"] == 1
    assert list(third) == ["42", "7", "8"]
    assert other["prompt_logprobs"] == choice["prompt_logprobs"]
    chat = (await raw.chat(prompt_logprobs=0)).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    # The second choice finds the prompt in the cache of the first.
    assert [one.sampling.HasField("num_prompt_logprobs") for one in raw.decodes[0].decodes[:2]].count(True) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [5000]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words.0"),
        ({"priority": "high"}, "priority"),
    ],
)
async def test_values_out_of_range_are_refused(raw, fields, param):
    response = await raw.http.post(PATH, json={"model": "kimi-k2.6", "prompt": "Once", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
