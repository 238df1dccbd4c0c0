"""The sampler for a GPU's logits against the one for the host's: the same choices and the same errors, row by row."""

import numpy as np
import pytest
import torch

from services.attention.sampling.on_device import sample_on_device
from services.attention.sampling.on_host import History, Rule, SamplingParams, sample
from services.runtime.errors import NumericError

VOCAB = 400
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=2**64 - 1, num_top_logprobs=0),
    SamplingParams(temperature=0.7, top_k=9, top_p=0.8, seed=5, num_top_logprobs=20),
    SamplingParams(min_p=0.02, seed=6, logit_bias={3: 50.0, 4: -100.0}),
    SamplingParams(seed=7, repetition_penalty=1.7, presence_penalty=0.5, frequency_penalty=1.5),
    SamplingParams(seed=8, frequency_penalty=-2.0, min_new_tokens=9, stop_token_ids=(1, 2), num_top_logprobs=3),
    SamplingParams(temperature=0.0, repetition_penalty=0.5, logit_bias={7: 1.0}),
    SamplingParams(temperature=0.0, num_top_logprobs=5, banned_ids=tuple(range(0, VOCAB, 2))),
    SamplingParams(seed=9, logit_bias={6: 100.0}, banned_ids=(6,)),
]


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def histories(rows):
    generator = np.random.default_rng(1)
    return [History(generator.integers(0, VOCAB, 30).tolist(), 20) for _ in range(rows)]


def compare(logits, params, rules):
    positions = list(range(len(params)))
    # Each gets logits of its own: both overwrite those of banned tokens.
    expected = sample(logits.clone(), params, positions, histories(len(params)), rules)
    found = sample_on_device(logits.to(device()), params, positions, histories(len(params)), rules)
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert type(one) is type(other), row
        if isinstance(one, NumericError):
            assert one.message == other.message
            continue
        assert one.token_id == other.token_id, row
        assert [token for token, _ in one.top_logprobs] == [token for token, _ in other.top_logprobs]
        assert (one.logprob is None) == (other.logprob is None)
        if one.logprob is not None:
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            ours, theirs = ([value for _, value in choice.top_logprobs] for choice in (one, other))
            assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["plain", "ties", "constrained"])
def test_the_same_choices(seed, kind):
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(0, 3, (len(PARAMS), VOCAB)).astype(np.float32))
    if kind == "ties":
        logits = logits.round()
    rules = [None] * len(PARAMS)
    if kind == "constrained":
        settle = {2: lambda token: token, 5: lambda token: (token + 1) % VOCAB}
        rules = [
            None if row % 3 == 1 else Rule(generator.random(VOCAB) < 0.1, settle.get(row)) for row in range(len(PARAMS))
        ]
    compare(logits, PARAMS, rules)


def test_the_same_errors():
    logits = torch.randn(6, VOCAB)
    logits[0, 5] = float("nan")
    logits[1, 5] = float("inf")
    logits[2] = float("-inf")
    nothing, late = Rule(np.zeros(VOCAB, dtype=bool)), NumericError("the grammar has no way on")
    # A mask that leaves out the broken logit does not hide it.
    logits[5, 5] = float("nan")
    without_5 = Rule(np.arange(VOCAB) != 5)
    compare(logits, [SamplingParams(seed=i) for i in range(6)], [None, None, None, nothing, late, without_5])


def test_no_rows():
    assert sample_on_device(torch.empty(0, VOCAB, device=device()), [], [], [], []) == []
