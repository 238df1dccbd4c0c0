"""The reference against float64, independent formulas and the check values of the released model."""

import math

import pytest
import torch

from kernels.reference import text as reference


@pytest.mark.parametrize(
    "values, word",
    [
        pytest.param(range(-8, 0), 0x76543210, id="minus-eight-to-minus-one"),
        pytest.param(range(8), 0xFEDCBA98, id="zero-to-seven"),
    ],
)
def test_int4_vectors(values, word):
    words = torch.tensor([[word] * 4]).to(torch.int32)
    scale = torch.tensor([[0.5]]).bfloat16()
    assert reference.dequantize(words, scale).tolist() == [[0.5 * v for v in values] * 4]


def test_int4_scales_belong_to_groups_of_32_columns():
    words = torch.full((2, 8), 0x11111111, dtype=torch.int32)  # nibble 1 is -7
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).bfloat16()
    weight = reference.dequantize(words, scale)
    assert weight.shape == (2, 64)
    assert weight[0, [0, 31, 32, 63]].tolist() == [-7.0, -7.0, -14.0, -14.0]
    assert weight[1, [0, 31, 32, 63]].tolist() == [-21.0, -21.0, -28.0, -28.0]


def test_rms_norm_by_hand():
    x = torch.tensor([[3.0, 4.0]])
    out = reference.rms_norm(x, torch.tensor([1.0, 2.0]).bfloat16(), 0.5)
    scale = 1 / math.sqrt(12.5 + 0.5)
    assert out[0].tolist() == pytest.approx([3 * scale, 8 * scale])


def test_rms_norm_rounds_before_the_weight():
    x = torch.tensor([[1.0, 1.01171875, 0.5, 3.0]]).bfloat16()
    weight = torch.tensor([1.5078125, 0.7, 1.1, 2.0]).bfloat16()
    normalised = (x.double() / (x.double().square().mean() + 1e-6).sqrt()).bfloat16()
    assert torch.equal(reference.rms_norm(x, weight, 1e-6), normalised * weight)


def test_rope_turns_interleaved_pairs_as_complex_numbers():
    x = torch.randn(3, 2, 8)
    positions, inv_freq = torch.tensor([0, 5, 1000]), torch.tensor([1.0, 0.3, 0.01, 1e-6])
    turned = torch.view_as_complex(x.double().reshape(3, 2, 4, 2))
    turned = turned * torch.exp(1j * positions.double()[:, None, None] * inv_freq.double())
    expected = torch.view_as_real(turned).reshape(3, 2, 8)
    torch.testing.assert_close(reference.rope(x, positions, inv_freq).double(), expected, rtol=0, atol=2e-4)


def test_rope_leaves_scores_a_function_of_the_distance():
    q, k = torch.randn(1, 1, 64), torch.randn(1, 1, 64)
    inv_freq = 50000.0 ** (-torch.arange(0, 64, 2) / 64)

    def score(a, b):
        return (reference.rope(q, torch.tensor([a]), inv_freq) * reference.rope(k, torch.tensor([b]), inv_freq)).sum()

    assert score(7, 3).item() == pytest.approx(score(104, 100).item(), rel=1e-4)


def test_route_by_hand():
    gate = torch.eye(4)
    hidden = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([0.0, -10.0, 0.0, 0.5])
    scores = [1 / (1 + math.exp(-v)) for v in (2.0, 1.0, 0.0, -1.0)]
    ids, weights = reference.route(
        hidden, gate, bias, top_k=2, num_groups=1, topk_groups=1, normalize=True, scale=2.827
    )
    assert ids.tolist() == [[0, 3]]  # the bias puts expert 3 above expert 2, and expert 1 last
    total = scores[0] + scores[3]
    assert weights[0].tolist() == pytest.approx([scores[0] / total * 2.827, scores[3] / total * 2.827])


def test_route_keeps_only_the_best_groups():
    hidden = torch.tensor([[5.0, -5.0, 3.0, 3.0]])  # sums of two: 1.0 and 1.9
    ids, _ = reference.route(
        hidden, torch.eye(4), torch.zeros(4), top_k=2, num_groups=2, topk_groups=1, normalize=True, scale=1.0
    )
    assert sorted(ids[0].tolist()) == [2, 3]


@pytest.mark.parametrize("context, tokens", [(1, 1), (9, 9), (9, 4), (9, 1)])
def test_absorbed_and_projected_attention_agree(context, tokens):
    heads, nope, rope, v_dim, latent, block_tokens = 3, 8, 4, 6, 16, 4
    weight = torch.randn(heads * (nope + v_dim), latent).bfloat16()
    split = weight.view(heads, nope + v_dim, latent)
    cache = torch.randn(6, block_tokens, latent + rope)
    table = torch.tensor([4, 0, 2], dtype=torch.int32)
    q_nope, q_rope = torch.randn(tokens, heads, nope), torch.randn(tokens, heads, rope)
    projected = reference.mla_prefill(q_nope, q_rope, cache, table, context, reference.pack_linear(weight), v_dim, 0.3)
    absorb = reference.pack_heads(split[:, :nope].transpose(1, 2).contiguous())
    value = reference.pack_heads(split[:, nope:].contiguous())
    lens = torch.arange(context - tokens + 1, context + 1).int()
    latents = reference.mla_decode(
        reference.head_linear(q_nope, absorb), q_rope, cache, table.expand(tokens, -1), lens, 0.3
    )
    torch.testing.assert_close(reference.head_linear(latents, value), projected, rtol=1e-4, atol=1e-5)


def test_expert_mlp_against_float64():
    hidden, width = 64, 32
    weights = [torch.randint(-8, 8, shape) for shape in ((width, hidden), (width, hidden), (hidden, width))]
    scale = 2.0**-6

    def packed(weight):
        nibbles = (weight + 8).view(*weight.shape[:-1], -1, 8)
        words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
        return words.to(torch.int32), torch.full((weight.shape[0], weight.shape[1] // 32), scale).bfloat16()

    experts = reference.pack_experts([sum((packed(w) for w in weights), ())])
    x, weight = torch.randn(2, hidden), torch.tensor([[0.75, 0.0], [0.25, 1.0]])
    ids = torch.tensor([[0, -1], [-1, 0]], dtype=torch.int32)
    gate, up, down = (w.double() * scale for w in weights)
    inner = x.double() @ gate.T
    expected = (inner * inner.sigmoid() * (x.double() @ up.T)) @ down.T * torch.tensor([[0.75], [1.0]])
    actual = reference.expert_mlp(x, ids, weight, experts)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
