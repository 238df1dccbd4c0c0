"""The layers against tests/reference: any cut of a prompt, any company, any block table, shards and micro-batches."""

import asyncio

import pytest
import torch

from services.attention.layers import formulas
from services.attention.layers.batch import make_batch
from services.attention.layers.formulas import embed, logits
from services.checkpoint.placement import layer_ranges
from services.local.random_checkpoint.write import write_random_checkpoint
from tests.reference.model import ReferenceModel
from tests.services.attention.layers.layer_session import BLOCK_TOKENS, Model, other_dims, text

# Logits of the random checkpoints reach 29; float32 sums in another order move them by up to 6e-5.
TOLERANCE = 1.5e-4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors gain nothing from threads, and a busy machine makes threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layers")
    write_random_checkpoint(root / "tiny", seed=3)
    write_random_checkpoint(root / "other", dims=other_dims(), seed=4)
    return root


@pytest.fixture(scope="module", params=["tiny", "other"])
def model(request, folders):
    return Model(folders / request.param)


@pytest.fixture(scope="module")
def tiny(folders):
    return Model(folders / "tiny")


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([150], id="one-chunk"),
        pytest.param([110, 1], id="then-token-by-token"),
        pytest.param([16], id="blocks"),
        pytest.param([17], id="one-more-than-a-block"),
        pytest.param([64, 1, 85], id="one-token-between"),
        pytest.param([149, 1], id="last-token-alone"),
        pytest.param([3, 40, 2, 50, 7], id="uneven"),
    ],
)
def test_a_prompt_in_chunks(model, sizes):
    # 150 tokens are beyond YaRN's original 128.
    prompt = text(1, 150)
    found = model.session().generation(prompt).logits_by_chunks(sizes)
    close(found, model.reference.logits(prompt)[-1])


@pytest.mark.parametrize("num_tokens", [1, 2, 15, 16, 17])
def test_prompts_around_a_block(model, num_tokens):
    prompt = text(num_tokens, num_tokens)
    close(model.session().generation(prompt).logits_by_chunks([100]), model.reference.logits(prompt)[-1])


def test_every_token_of_a_chunk(model):
    prompt = text(2, 40)
    session = model.session()
    batch = make_batch([session.generation(prompt).next_row(40)], BLOCK_TOKENS)
    hidden = asyncio.run(session._forward([batch]))
    close(logits(hidden, model.ends, model.config), model.reference.logits(prompt))


def serve(session, prompts, num_tokens, chunk_tokens):
    """Serves generations that join one step after another; each goes on decoding while later prompts are chunked."""
    generations = [session.generation(prompt) for prompt in prompts]
    trails = [[] for _ in prompts]
    joined = 0
    while any(len(trail) < num_tokens for trail in trails):
        joined = min(joined + 1, len(prompts))
        running = [i for i in range(joined) if len(trails[i]) < num_tokens]
        # Decodes and chunks are mixed in the order of the plan.
        rows = []
        for i in running:
            left = len(generations[i].token_ids) - generations[i].num_computed
            rows.append(generations[i].next_row(min(chunk_tokens, left)))
        out = iter(session.run(rows))
        for i, row in zip(running, rows, strict=True):
            if row.num_logits:
                trails[i].append(next(out))
                generations[i].token_ids.append(int(trails[i][-1].argmax()))
    return [(g.token_ids[len(p) :], torch.stack(t)) for g, p, t in zip(generations, prompts, trails, strict=True)]


PROMPTS = [text(10 + i, n) for i, n in enumerate([5, 33, 1, 100, 16])]


@pytest.mark.parametrize("num_shards, num_micro_batches", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3)])
def test_generations_together(model, num_shards, num_micro_batches):
    sizes = [len(layers) for layers in layer_ranges(len(model.layers), num_shards)]
    session = model.session(shard_sizes=sizes, num_micro_batches=num_micro_batches, seed=num_shards)
    for prompt, (token_ids, trail) in zip(PROMPTS, serve(session, PROMPTS, 5, 30), strict=True):
        assert token_ids == model.reference.generate(prompt, 5)
        expected = model.reference.logits(prompt + token_ids[:-1])[len(prompt) - 1 :]
        close(trail, expected)


def test_every_dispatch_is_named(model):
    session = model.session(num_micro_batches=2)
    session.step = 7
    model.experts.calls.clear()
    session.run([session.generation(text(5, 9)).next_row(9), session.generation(text(6, 1)).next_row(1)])
    moe = list(model.config.moe_layers)
    assert sorted(model.experts.calls) == sorted(
        [(7, layer, 0, 1) for layer in moe] + [(7, layer, 1, 9) for layer in moe]
    )


def test_micro_batches_overlap(tiny):
    """Both micro-batches have dispatched a layer before either goes on to the next one."""
    session = tiny.session(num_micro_batches=2)
    tiny.experts.calls.clear()
    session.run([session.generation(text(i, 1)).next_row(1) for i in range(2)])
    layers = [(layer, micro_batch) for _, layer, micro_batch, _ in tiny.experts.calls]
    assert layers.index((1, 1)) < layers.index((2, 0))


def test_the_dispatch_leaves_before_the_shared_expert_is_computed(tiny, monkeypatch):
    events = []
    dispatch, mlp = tiny.experts.dispatch, formulas.mlp

    async def waiting(routed):
        events.append("awaited")
        return await routed

    monkeypatch.setattr(tiny.experts, "dispatch", lambda *args: events.append("sent") or waiting(dispatch(*args)))
    monkeypatch.setattr(formulas, "mlp", lambda *arguments: events.append("mlp") or mlp(*arguments))
    session = tiny.session()
    session.run([session.generation(text(1, 3)).next_row(3)])
    assert events == ["mlp"] + ["sent", "mlp", "awaited"] * 3


def test_only_the_batch_is_written(tiny):
    session = tiny.session()
    generation = session.generation(text(1, 21))
    session.run([generation.next_row(21)])
    _, cache = session.shards[0]
    written = ~cache.isnan().any(-1)  # [blocks, layers, block_tokens]
    slots = {generation.block_ids[i // BLOCK_TOKENS] * BLOCK_TOKENS + i % BLOCK_TOKENS for i in range(21)}
    for layer in range(cache.shape[1]):
        assert set(written[:, layer].flatten().nonzero()[:, 0].tolist()) == slots


@pytest.mark.parametrize("latent_norm_eps", [1e-3, 0.1])
def test_latent_norm_eps_is_a_setting(folders, tiny, latent_norm_eps):
    other = Model(folders / "tiny", latent_norm_eps=latent_norm_eps)
    prompt = text(4, 30)
    found = other.session().generation(prompt).logits_by_chunks([29, 1])
    close(found, other.reference.logits(prompt)[-1])
    # The two settings differ by more than the tolerance, so the comparison above can fail.
    assert (found - tiny.session().generation(prompt).logits_by_chunks([29, 1])).abs().max() > 2 * TOLERANCE


def row_errors(found, expected) -> torch.Tensor:
    """Root mean square error of each row of logits."""
    return (found - expected).square().mean(-1).sqrt()


@pytest.mark.parametrize("sizes", [[150], [130, 1]], ids=["prefill", "decode"])
@pytest.mark.parametrize("name", ["tiny", "other"])
def test_bfloat16_is_as_close_to_float32_as_the_reference(folders, name, sizes):
    """Rounding may send a token to another expert, after which its logits are elsewhere, in any bf16 run. So the
    median error is compared: with that of the reference run in bf16 by eager PyTorch, and with the logits' spread."""
    prompt = text(1, 150)
    exact = ReferenceModel(folders / name).logits(prompt)
    model = Model(folders / name, dtype=torch.bfloat16)
    session = model.session()
    generation, found = session.generation(prompt), []
    while generation.num_computed < len(prompt):
        size = sizes[0] if generation.num_computed == 0 else sizes[-1]
        batch = make_batch([generation.next_row(size)], BLOCK_TOKENS)
        found.append(logits(asyncio.run(session._forward([batch])), model.ends, model.config))
    error = row_errors(torch.cat(found), exact).median()
    assert error < 1.25 * row_errors(model.reference.logits(prompt), exact).median()
    assert error < 0.05 * exact.std()


def test_media_features_replace_embeddings(tiny):
    token_ids = torch.tensor([3, 7, 7, 5])
    features = torch.arange(2.0 * tiny.config.hidden_size).view(2, -1)
    plain = embed(token_ids, tiny.ends, torch.float32)
    hidden = embed(token_ids, tiny.ends, torch.float32, (torch.tensor([1, 2]), features.bfloat16()))
    assert torch.equal(hidden[[0, 3]], plain[[0, 3]])
    assert torch.equal(hidden[[1, 2]], features.bfloat16().float())
    assert torch.equal(embed(token_ids, tiny.ends, torch.float32), plain)
