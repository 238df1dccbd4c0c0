"""Drafts from the context, and how many of their tokens are worth a place in a step."""

import random
import statistics

from services.attention.engine import drafts as drafts_module
from services.attention.engine.draft_lengths import PROBE_EVERY, DraftLengths
from services.attention.engine.drafts import ContextDrafts


def test_what_followed_the_same_tokens_is_drafted():
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 21, 3, 4, 5]
    assert ContextDrafts(tokens).find(4).token_ids == [6, 7, 8, 9]


def test_a_longer_match_wins_over_a_newer_one():
    long = list(range(100, 112))
    tokens = [*long, 1, 2, 3, *long[-3:], 9, 9, 9, *long]
    assert ContextDrafts(tokens).find(3).token_ids == [1, 2, 3]


def test_the_newest_of_equal_matches_wins():
    assert ContextDrafts([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]).find(1).token_ids == [8]


def test_a_repetition_goes_on_beyond_the_end():
    assert ContextDrafts([1, 2, 3, 4] * 2).find(6).token_ids == [1, 2, 3, 4, 1, 2]
    assert ContextDrafts([5] * 6).find(3).token_ids == [5, 5, 5]


def test_without_a_match_nothing_is_drafted():
    assert ContextDrafts(list(range(50))).find(4) is None
    assert ContextDrafts([1]).find(4) is None
    assert ContextDrafts([]).find(4) is None


def test_what_grows_is_found_as_in_one_piece():
    rng = random.Random(4)
    whole = rng.choices(range(4), k=3000)
    growing = whole[:10]
    drafts = ContextDrafts(growing)
    for token in whole[10:]:
        growing.append(token)
        found = drafts.find(4)
    again = ContextDrafts(whole)
    for _ in range(5):
        expected = again.find(4)  # a long context is indexed in several steps
    assert found.token_ids == expected.token_ids


def test_the_index_stays_bounded_while_an_answer_grows(monkeypatch):
    monkeypatch.setattr(drafts_module, "MOST_INDEXED", 100)
    tokens = list(range(50))
    drafts = ContextDrafts(tokens)
    for token in range(50, 1000):
        tokens.append(token)
        drafts.find(4)
    assert [len(places) for places in drafts._places.values()] == [100, 100, 100]
    tokens += tokens[920:930]
    assert drafts.find(4).token_ids == [930, 931, 932, 933]
    tokens += tokens[100:110]
    assert drafts.find(4) is None, "too long ago"


def test_a_repeated_place_is_forgotten_at_its_last_time(monkeypatch):
    monkeypatch.setattr(drafts_module, "MOST_INDEXED", 100)
    tokens = []
    drafts = ContextDrafts(tokens)
    for token in [*range(80), *range(1000, 1012), 7, 8, 9, 77, *range(2000, 2090), 7, 8, 9]:
        tokens.append(token)
        found = drafts.find(1)
    assert found.token_ids == [77]


def test_the_probability_follows_what_came():
    tokens = [1, 2, 3, 4, 1, 2, 3]
    drafts = ContextDrafts(tokens)
    before = drafts.find(1).probability
    tokens += [4, 1, 2, 3]
    assert drafts.find(1).probability > before
    tokens += [9, 1, 2, 3]
    after_a_miss = drafts.find(1).probability
    tokens += [8, 1, 2, 3]
    assert drafts.find(1).probability < after_a_miss


def usual_length(step_seconds, probability):
    """The length that is mostly chosen in the end where a step with so many drafted tokens takes so long."""
    lengths, chosen, noise = DraftLengths(), [], random.Random(1)
    for _ in range(800):
        chosen += lengths.choose(1, [(probability, 8)])
        lengths.learn(1, chosen[-1], step_seconds(chosen[-1]) * noise.uniform(0.95, 1.05))
    return statistics.median(chosen[-200:])


def test_where_rows_cost_nothing_all_is_drafted():
    assert usual_length(lambda _: 0.1, 0.9) == 8


def test_where_a_row_costs_a_step_nothing_is_drafted():
    assert usual_length(lambda rows: 0.1 * (1 + rows), 0.9) == 0


def test_a_draft_ends_where_the_next_token_would_not_pay():
    # 1 + 0.6 tokens for 1.2 steps pay; the next one adds 0.36 tokens, and 0.216 after it do not.
    assert 1 <= usual_length(lambda rows: 0.1 + 0.02 * rows, 0.6) <= 3


def test_in_a_large_batch_the_likely_drafts_get_the_rows():
    lengths = DraftLengths()
    for _ in range(50):
        lengths.learn(4, 0, 0.1)
        lengths.learn(4, 2, 0.12)
    chosen = lengths.choose(4, [(0.95, 8), (0.1, 8), (0.0, 0), (0.1, 8)])
    assert chosen[0] > 0
    assert chosen[1:] == [0, 0, 0]


def test_useless_drafts_cost_less_than_two_percent():
    """Drafts that look good and never are right: what is lost are the probes."""
    lengths, spent, steps = DraftLengths(), 0.0, 5000
    for _ in range(steps):
        drafted = sum(lengths.choose(1, [(0.0, 8)]))
        seconds = 0.1 * (1 + 0.6 * drafted)
        spent += seconds
        lengths.learn(1, drafted, seconds)
    assert spent < 1.02 * 0.1 * steps
    assert PROBE_EVERY >= 50
