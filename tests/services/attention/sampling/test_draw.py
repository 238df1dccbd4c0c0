"""Draws against the definition, read literally, on distributions that need every shortcut and every fallback."""

import math

import numpy as np
import pytest

from services.attention.sampling.draw import NUM_STRIPES, Shape, descending, draw, leaders

LARGEST_UNIFORM = 1 - 2.0**-53


def defined(logits: np.ndarray, shape: Shape, uniform: float) -> int:
    """The definition in Python's own floats, over the whole vocabulary."""
    kept, _, nucleus = nucleus_of(logits, shape)
    return next(
        token_id for token_id, sum_so_far in zip(kept, nucleus, strict=True) if sum_so_far > uniform * nucleus[-1]
    )


def nucleus_of(logits: np.ndarray, shape: Shape) -> tuple[list[int], list[float], list[float]]:
    """The tokens kept, their weights and the running sums of these."""
    values = logits.astype(np.float64).tolist()
    order = sorted(range(len(values)), key=lambda token_id: (-values[token_id], token_id))
    peak = values[order[0]]
    weights = [math.exp((values[token_id] - peak) / shape.temperature) for token_id in order]
    kept = [weight for weight in weights if weight >= shape.min_p][: shape.top_k or len(order)]
    running, sums = 0.0, []
    for weight in kept:
        running += weight
        sums.append(running)
    end = next(index for index, so_far in enumerate(sums) if so_far >= shape.top_p * running) + 1
    return order[:end], kept[:end], sums[:end]


def normal(size: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(size).standard_normal(size) * scale).astype(np.float32)


def peaked(size: int) -> np.ndarray:
    logits = normal(size, 2.0)
    logits[7::97] += np.linspace(3, 14, len(logits[7::97]), dtype=np.float32)
    return logits


def mostly_banned(size: int) -> np.ndarray:
    logits = np.full(size, -np.inf, dtype=np.float32)
    logits[size // 3 :: 11] = normal(size, 1.0)[size // 3 :: 11]
    return logits


def steps(size: int) -> np.ndarray:
    """Few distinct values, zeros of both signs among them, so that ties lie at every cut."""
    logits = (np.arange(size) * 7919 % 5 - 2).astype(np.float32)
    return np.where((logits == 0) & (np.arange(size) % 2 == 0), np.float32(-0.0), logits)


DISTRIBUTIONS = {
    "one-token": np.array([-3.0], dtype=np.float32),
    "two-equal": np.zeros(2, dtype=np.float32),
    "below-one-stripe": normal(NUM_STRIPES - 1, 3.0),
    "one-row-of-stripes": normal(NUM_STRIPES, 3.0),
    "one-more": normal(NUM_STRIPES + 1, 3.0),
    "flat": normal(5000, 0.1),
    "normal": normal(5003, 2.5),
    "peaked": peaked(9001),
    "all-equal": np.full(3000, 4.25, dtype=np.float32),
    "ties": steps(3001),
    "mostly-banned": mostly_banned(4000),
    "one-allowed": np.where(np.arange(2000) == 1999, 0, -np.inf).astype(np.float32),
    "huge": normal(2000, 1e30),
}
SHAPES = {
    "plain": Shape(1.0, 0, 1.0, 0.0),
    "card": Shape(1.0, 0, 0.95, 0.0),
    "instant": Shape(0.6, 0, 0.95, 0.0),
    "cold": Shape(1e-5, 0, 0.9, 0.0),
    "hot": Shape(2.0, 0, 0.999, 0.0),
    "half": Shape(1.0, 0, 0.5, 0.0),
    "tiny-top-p": Shape(1.0, 0, 1e-9, 0.0),
    "top-1": Shape(1.0, 1, 1.0, 0.0),
    "top-50": Shape(1.0, 50, 1.0, 0.0),
    "top-2000": Shape(1.5, 2000, 0.99, 0.0),
    "min-p": Shape(1.0, 0, 1.0, 0.05),
    "min-p-one": Shape(1.0, 0, 1.0, 1.0),
    "small-min-p": Shape(1.0, 0, 0.98, 1e-6),
    "all-three": Shape(0.8, 300, 0.9, 0.001),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("logits", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
def test_draws_are_those_of_the_definition(logits, shape):
    tokens, _, sums = nucleus_of(logits, shape)
    inside = [so_far / sums[-1] for so_far in sums[:: max(1, len(sums) // 20)]]
    edges = [math.nextafter(edge, direction) for edge in inside for direction in (0.0, 1.0)]
    uniforms = [0.0, LARGEST_UNIFORM, *np.linspace(0.001, 0.999, 25).tolist(), *inside, *edges]
    for uniform in [u for u in uniforms if u < 1]:
        place = next(i for i, so_far in enumerate(sums) if so_far > uniform * sums[-1])
        assert draw(logits, shape, uniform) == tokens[place]


@pytest.mark.slow
def test_a_full_vocabulary():
    shape = Shape(1.0, 0, 0.95, 0.0)
    for logits in (peaked(163840), normal(163840, 1.0)):
        for uniform in (0.1, 0.8, LARGEST_UNIFORM):
            assert draw(logits, shape, uniform) == defined(logits, shape, uniform)


def test_a_banned_token_is_never_drawn():
    logits = np.array([-np.inf, 1.0, -np.inf, 1.0, -np.inf], dtype=np.float32)
    drawn = {draw(logits, SHAPES["plain"], uniform) for uniform in np.linspace(0, LARGEST_UNIFORM, 50)}
    assert drawn == {1, 3}


@pytest.mark.parametrize("logits", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
def test_leaders_lead(logits):
    ids = leaders(logits).tolist()
    assert len(ids) >= min(len(logits), NUM_STRIPES)
    order = sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id))
    assert ids == order[: len(ids)]


def test_descending_keeps_equals_in_order():
    logits = np.array([0.0, 2.0, -0.0, -np.inf, 2.0, -1.5, 3e-45, -3e-45], dtype=np.float32)
    assert descending(logits, np.arange(8)).tolist() == [1, 4, 6, 0, 2, 7, 5, 3]
    assert descending(logits, np.array([2, 3, 4])).tolist() == [4, 2, 3]
