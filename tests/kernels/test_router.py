"""The router of every implementation against the reference."""

import pytest
import torch


def route(kernels, hidden, gate, bias, top_k, *, num_groups=1, topk_groups=1, normalize=True, scale=2.827):
    return kernels.route(
        hidden,
        gate,
        bias,
        top_k=top_k,
        num_groups=num_groups,
        topk_groups=topk_groups,
        normalize=normalize,
        scale=scale,
    )


@pytest.mark.parametrize(
    "experts, top_k, groups",
    [
        (1, 1, (1, 1)),
        (4, 4, (1, 1)),
        (7, 2, (1, 1)),
        (64, 8, (1, 1)),
        (384, 8, (1, 1)),
        (16, 4, (4, 2)),
        (8, 2, (8, 3)),
    ],
)
@pytest.mark.parametrize("tokens", [0, 1, 65, 200])
def test_route(fast, oracle, dtype, experts, top_k, groups, tokens):
    hidden, gate = torch.randn(tokens, 75).to(dtype), torch.randn(experts, 75) * 0.2
    bias = torch.randn(experts) * 0.3
    options = {"num_groups": groups[0], "topk_groups": groups[1]}
    ids, weights = route(fast, hidden, gate, bias, top_k, **options)
    expected_ids, expected_weights = route(oracle, hidden, gate, bias, top_k, **options)
    assert ids.dtype == torch.int32 and weights.dtype == torch.float32
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=2e-6, atol=1e-6)


def test_a_gate_of_bfloat16_is_the_same_gate(fast, oracle, dtype):
    hidden, gate, bias = torch.randn(9, 64).to(dtype), torch.randn(24, 64).bfloat16(), torch.randn(24)
    ids, weights = route(fast, hidden, gate, bias, 4)
    expected_ids, expected_weights = route(oracle, hidden, gate.float(), bias, 4)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=2e-6, atol=1e-6)


def test_weights_are_not_normalised_if_not_asked(fast, oracle):
    hidden, gate, bias = torch.randn(5, 32), torch.randn(10, 32), torch.randn(10)
    actual = route(fast, hidden, gate, bias, 3, normalize=False, scale=1.5)[1]
    torch.testing.assert_close(actual, route(oracle, hidden, gate, bias, 3, normalize=False, scale=1.5)[1])
    assert not torch.allclose(actual.sum(-1), torch.full((5,), 1.5))


def test_the_bias_chooses_but_does_not_weigh(kernels):
    hidden, gate = torch.zeros(1, 8), torch.zeros(4, 8)
    ids, weights = route(kernels, hidden, gate, torch.tensor([0.0, 100.0, 0.0, 200.0]), 2, scale=1.0)
    assert ids.tolist() == [[3, 1]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_of_equal_experts_the_lower_id_comes_first(kernels):
    ids, _ = route(kernels, torch.ones(3, 8), torch.zeros(6, 8), torch.zeros(6), 4)
    assert ids.tolist() == [[0, 1, 2, 3]] * 3


def test_a_bias_far_above_the_scores_keeps_float32(fast, oracle):
    hidden, gate = torch.randn(64, 32).bfloat16(), torch.randn(48, 32)
    bias = 8.0 + torch.rand(48) * 1e-3  # steps of bfloat16 are 0.06 here
    assert torch.equal(route(fast, hidden, gate, bias, 8)[0], route(oracle, hidden, gate, bias, 8)[0])


def test_nan_gives_valid_ids(kernels):
    hidden = torch.full((2, 16), float("nan"))
    ids, weights = route(kernels, hidden, torch.randn(12, 16), torch.zeros(12), 4)
    assert ((ids >= 0) & (ids < 12)).all()
    assert weights.isnan().all()


def test_a_token_is_routed_alike_in_every_batch(native, dtype, threads):
    hidden, gate, bias = torch.randn(150, 130).to(dtype), torch.randn(50, 130), torch.randn(50)
    threads(2)
    ids, weights = route(native, hidden, gate, bias, 6)
    threads(1)
    for row in (0, 63, 64, 149):
        alone = route(native, hidden[row : row + 1], gate, bias, 6)
        assert torch.equal(alone[0][0], ids[row]) and torch.equal(alone[1][0], weights[row])
