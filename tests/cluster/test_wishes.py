"""What clients wish of tokens, through a whole cluster: scores of texts, budgets of thoughts, words, grammars."""

import random

import httpx
import pytest
import torch

MODEL = {"model": "kimi-k2.6"}


@pytest.fixture
async def http(cluster):
    async with httpx.AsyncClient(base_url=cluster.url, timeout=120, trust_env=False) as client:
        yield client


async def test_loglikelihood_is_the_models(http, reference):
    """The requests and the arithmetic of lm-eval's `local-completions`."""
    contexts = [random.Random(seed).choices(range(320), k=length) for seed, length in ((1, 3), (2, 40), (3, 120))]
    continuations = [[7, 8, 9], [10], [11, 12]]
    prompts = [context + rest for context, rest in zip(contexts, continuations, strict=True)]
    body = {**MODEL, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1}
    answers = [(await http.post("/v1/completions", json=body)).json()["choices"] for _ in range(2)]
    assert [choice["logprobs"] for choice in answers[0]] == [choice["logprobs"] for choice in answers[1]]
    for choice, context, prompt in zip(answers[0], contexts, prompts, strict=True):
        logprobs = choice["logprobs"]
        expected = torch.log_softmax(reference.logits(prompt).double(), -1)
        wanted = [float(expected[at - 1, prompt[at]]) for at in range(len(context), len(prompt))]
        assert logprobs["token_logprobs"][len(context) : -1] == pytest.approx(wanted, abs=5e-3)
        scored = list(zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))[len(context) : -1]
        greedy = [int(expected[at - 1].argmax()) == prompt[at] for at in range(len(context), len(prompt))]
        assert [one == max(top.values()) for one, top in scored] == greedy


@pytest.mark.parametrize("budget", [4, 30])
async def test_a_thought_ends_inside_its_budget(http, budget):
    messages = [{"role": "user", "content": "Hi"}]
    body = {**MODEL, "messages": messages, "max_tokens": 100, "thinking_budget": budget, "seed": 2, "ignore_eos": True}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] <= budget
    assert answer["choices"][0]["message"]["content"]
    assert "�" not in answer["choices"][0]["message"]["reasoning_content"][-1:] or budget < 24


async def test_only_allowed_tokens_and_no_bad_words(http):
    body = {**MODEL, "prompt": [5, 6, 7], "max_tokens": 12, "seed": 4, "temperature": 2, "logprobs": 0}
    allowed = (await http.post("/v1/completions", json={**body, "allowed_token_ids": [65, 66]})).json()
    assert len(set(allowed["choices"][0]["logprobs"]["tokens"])) <= 2
    free = (await http.post("/v1/completions", json=body)).json()["choices"][0]
    word = next(token for token in free["logprobs"]["tokens"] if token.isprintable() and "�" not in token)
    banned = (await http.post("/v1/completions", json={**body, "bad_words": [word]})).json()["choices"][0]
    assert word not in banned["logprobs"]["tokens"]


async def test_grammars_of_every_name_hold(http):
    messages = [{"role": "user", "content": "Hi"}]
    body = {**MODEL, "messages": messages, "max_tokens": 60, "thinking": {"type": "disabled"}, "seed": 1}
    for form in ({"ebnf": 'root ::= "yes" | "no"'}, {"guided_choice": ["yes", "no"]}, {"regex": "yes|no"}):
        answer = (await http.post("/v1/chat/completions", json={**body, **form})).json()
        assert answer["choices"][0]["message"]["content"] in ("yes", "no"), (form, answer)
