"""Drawing tokens: the Triton kernel against the definition, and both against the engine's sampler."""

import numpy as np
import pytest
import torch

from kernels.gpu import log_totals, sampling
from kernels.reference import sampling as sampling_reference
from services.attention.sampling.on_device import shapes_of
from services.attention.sampling.on_host import SamplingParams, sample
from services.attention.sampling.random_numbers import philox
from tests.kernels.triton_device import DEVICE, moved

# Every parameter alone, then combinations.
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=2**64 - 1),
    SamplingParams(temperature=0.3, seed=3),
    SamplingParams(top_k=7, seed=5),
    SamplingParams(top_p=0.5, seed=6),
    SamplingParams(min_p=0.1, seed=8),
    SamplingParams(top_p=0.9, top_k=50, seed=7),
    SamplingParams(temperature=2.0, min_p=0.05, top_p=0.7, top_k=3, seed=9),
    SamplingParams(top_p=1e-9, top_k=5000, seed=9),
]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Make parts small, so that short rows have many of them: the interpreter is slow."""
    if DEVICE == "cpu":
        monkeypatch.setattr(sampling, "PART", 512)


def logits_of(kind, rows, vocab):
    logits = torch.randn(rows, vocab) * 3
    if kind == "ties":
        logits = logits.round()
    if kind == "equal":
        logits = torch.full_like(logits, 1.5)
    if vocab > 5:
        logits[:, 3] = float("-inf")
    return logits


@pytest.mark.parametrize("kind, vocab", [("normal", 1), ("ties", 5), ("equal", 1023), ("ties", 1025)])
@pytest.mark.slow
def test_the_same_tokens_on_every_device(kind, vocab):
    logits = logits_of(kind, len(PARAMS), vocab)
    positions = [i * 1000 for i in range(len(PARAMS))]
    expected = [choice.token_id for choice in sample(logits, PARAMS, positions)]
    shapes = shapes_of(PARAMS, positions, "cpu")
    ids, largest = sampling_reference.draw(logits, shapes)
    assert ids.tolist() == expected
    on_device = type(shapes)(*moved(*shapes))
    drawn, top = sampling.draw(*moved(logits), on_device)
    assert drawn.tolist() == expected
    assert torch.equal(top.cpu(), largest) and torch.equal(largest, logits.max(-1).values)


@pytest.mark.slow
def test_only_what_is_allowed_is_drawn():
    logits = logits_of("ties", len(PARAMS), 300)
    allowed = torch.rand(logits.shape) < 0.05
    allowed[:, 299] = True
    allowed[2] = False
    shapes = shapes_of(PARAMS, range(len(PARAMS)), "cpu")
    expected, largest = sampling_reference.draw(logits, shapes, allowed)
    drawn, top = sampling.draw(*moved(logits), type(shapes)(*moved(*shapes)), *moved(allowed))
    assert torch.equal(drawn.cpu(), expected) and torch.equal(top.cpu(), largest)
    assert drawn[2] == 0 and top[2] == float("-inf")
    rows = torch.arange(len(PARAMS)) != 2
    assert allowed[rows, drawn.cpu()[rows]].all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_no_numbers_is_known_by_its_largest(value):
    logits = torch.randn(3, 100)
    logits[1, 70] = value
    shapes = shapes_of([SamplingParams(seed=i) for i in range(3)], range(3), "cpu")
    ids, largest = sampling_reference.draw(logits, shapes)
    drawn, top = sampling.draw(*moved(logits), type(shapes)(*moved(*shapes)))
    assert torch.equal(drawn.cpu(), ids)
    assert top.isfinite().tolist() == largest.isfinite().tolist() == [True, False, True]


def test_log_totals():
    logits = logits_of("normal", 4, 1500) * 20
    np.testing.assert_allclose(log_totals.log_totals(*moved(logits)).cpu(), logits.double().logsumexp(-1), rtol=1e-12)


def test_top_tokens_breaks_ties_by_id():
    logits = torch.tensor([[1.0, -0.0, 0.0, 1.0, float("-inf"), -2.0]])
    assert sampling_reference.top_tokens(logits, 6).tolist() == [[0, 3, 1, 2, 5, 4]]


def test_random_words_are_those_of_the_sampler():
    for seed, position in ((0, 0), (2**64 - 1, 1), (12345, 2**40)):
        assert sampling_reference.philox(position, seed) == philox((position, 0, 0, 0), (seed, 0))[0]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: the vocabulary of K2.6")
def test_the_vocabulary_of_k26():
    logits = (torch.randn(len(PARAMS), 163_840) * 4).bfloat16().float()
    expected = [choice.token_id for choice in sample(logits, PARAMS, range(len(PARAMS)))]
    shapes = shapes_of(PARAMS, range(len(PARAMS)), DEVICE)
    assert sampling.draw(logits.to(DEVICE), shapes)[0].tolist() == expected
