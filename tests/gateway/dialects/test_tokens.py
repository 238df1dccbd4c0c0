"""Counting and cutting: /tokenize, /detokenize, Kimi's estimate."""

import pytest

HI = [{"role": "user", "content": "Hi <|im_end|> wörld"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PATHS = pytest.mark.parametrize("prefix", ["", "/v1"])


@PATHS
async def test_text_and_back(site, prefix):
    text = "a <|im_end|> wörld 👋"
    body = (await site.http.post(f"{prefix}/tokenize", json={"prompt": text, "return_token_strs": True})).json()
    assert body["tokens"] == site.vocabulary.encode_with_special(text)
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"])
    assert "<|im_end|>" in body["token_strs"]
    assert body["max_model_len"] == site.context_tokens
    back = await site.http.post(f"{prefix}/detokenize", json={"tokens": body["tokens"]})
    assert back.json() == {"prompt": text}


async def test_special_text_may_stay_text(site):
    body = (await site.http.post("/tokenize", json={"prompt": "<|im_end|>", "add_special_tokens": False})).json()
    assert body["tokens"] == site.vocabulary.encode("<|im_end|>")
    assert body["token_strs"] is None


async def test_empty(site):
    assert (await site.http.post("/tokenize", json={"prompt": ""})).json()["tokens"] == []
    assert (await site.http.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [TOOL]},
        {"thinking": {"type": "disabled"}},
        {"chat_template_kwargs": {"thinking": False}},
        {"messages": [*HI, {"role": "assistant", "content": "We", "partial": True}]},
    ],
    ids=lambda fields: next(iter(fields), "plain"),
)
async def test_a_conversation_counts_as_in_chat(site, fields):
    fields = {"messages": HI, **fields}
    usage = (await site.chat(**fields)).json()["usage"]
    ids = list(site.prefills[0].prefills[0].prompt.token_ids)
    body = (await site.http.post("/tokenize", json=fields)).json()
    assert body["tokens"] == ids
    asked = {"model": "kimi-k2.6", **fields}
    estimate = (await site.http.post("/v1/tokenizers/estimate-token-count", json=asked)).json()
    assert estimate == {"data": {"total_tokens": usage["prompt_tokens"]}}


async def test_without_a_generation_prompt(site):
    with_prompt = (await site.http.post("/tokenize", json={"messages": HI})).json()["count"]
    body = {"messages": HI, "add_generation_prompt": False}
    assert (await site.http.post("/tokenize", json=body)).json()["count"] < with_prompt


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "gpt-4"}, 404, "model"),
        ("/tokenize", {"messages": HI, "model": "gpt-4"}, 404, "model"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "return_token_strs": "yes"}, 400, "return_token_strs"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "yes"}, 400, "add_special_tokens"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": [1, 1024]}, 400, "tokens.1"),
        ("/detokenize", {"tokens": [2**70]}, 400, "tokens.0"),
        ("/v1/tokenizers/estimate-token-count", {"messages": HI}, 400, "model"),
        ("/v1/tokenizers/estimate-token-count", {"model": "kimi-k2.6"}, 400, "messages"),
        ("/v1/tokenizers/estimate-token-count", {"model": "gpt-4", "messages": HI}, 404, "model"),
    ],
)
async def test_malformed(site, path, fields, status, param):
    response = await site.http.post(path, json=fields)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


async def test_the_tokens_of_a_conversation_as_text(site):
    body = {"messages": [{"role": "user", "content": "Hi"}], "return_token_strs": True, "add_special_tokens": True}
    listed = (await site.http.post("/tokenize", json=body)).json()
    assert "".join(listed["token_strs"]) == site.vocabulary.decode(listed["tokens"])


async def test_no_balance_is_invented(site):
    assert (await site.http.get("/v1/users/me/balance")).status_code == 404
