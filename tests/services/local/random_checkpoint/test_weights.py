"""Random weights behave like a model: outputs vary, experts affect them and share the work, stops are rare."""

import itertools
from pathlib import Path

import pytest
import torch

from services.local.random_checkpoint.write import write_random_checkpoint
from tests.reference.model import ReferenceModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "tiny"
    write_random_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ReferenceModel(folder)


@pytest.fixture(scope="module")
def text(model):
    prompts = [torch.randint(320, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 9, 90)]
    return [prompt + model.generate(prompt, 64) for prompt in prompts]


def test_greedy_output_varies(text):
    for tokens in text:
        out = tokens[-64:]
        assert len(set(out)) >= 25
        assert max(len(list(run)) for _, run in itertools.groupby(out)) < 25
        assert all(token < 320 for token in out)
    assert len({tuple(tokens[-64:]) for tokens in text}) == 3


def test_logits_are_spread_and_stops_are_rare(model, text):
    for tokens in text:
        logits = model.logits(tokens)
        assert 2 < logits[:, :320].std() < 5
        chances = logits.softmax(-1).mean(0)
        assert 1e-6 < chances[322] < 3e-3
        assert chances[320:].sum() < 1e-2


def test_experts_share_the_work(model, text, monkeypatch):
    chosen = {}

    def remembering(x, prefix, route=model.route):
        ids, weights = route(x, prefix)
        chosen.setdefault(prefix, []).extend(ids.flatten().tolist())
        return ids, weights

    monkeypatch.setattr(model, "route", remembering)
    for tokens in text:
        model.logits(tokens)
    assert len(chosen) == 3
    for ids in chosen.values():
        counts = torch.bincount(torch.tensor(ids), minlength=16)
        assert counts.min() > 0
        assert counts.max() < 3 * counts.float().mean()


def test_the_router_bias_changes_the_choice(model, text):
    x = torch.randn(100, 128)
    before, _ = model.route(x, "model.layers.2.mlp")
    bias = model.weights["model.layers.2.mlp.gate.e_score_correction_bias"]
    model.weights["model.layers.2.mlp.gate.e_score_correction_bias"] = torch.zeros_like(bias)
    after, _ = model.route(x, "model.layers.2.mlp")
    model.weights["model.layers.2.mlp.gate.e_score_correction_bias"] = bias
    differ = (before.sort(-1).values != after.sort(-1).values).any(-1).float().mean()
    assert 0.1 < differ < 0.9


def test_experts_matter(folder, model, text):
    without = ReferenceModel(folder)
    without.config["routed_scaling_factor"] = 0.0
    with_, out = (m.logits(text[2]).argmax(-1) for m in (model, without))
    assert (with_ == out).float().mean() < 0.7
