"""The arithmetic and the choices of dispatch, without a wire."""

from dataclasses import dataclass, field

import pytest
import torch

from kernels.interface import RoutedTokens
from services.attention.experts.in_flight import choose_replica
from services.attention.experts.split import Splitter, combine


def work(ids) -> RoutedTokens:
    ids = torch.tensor(ids, dtype=torch.int32)
    tokens = torch.arange(len(ids), dtype=torch.float32)
    return RoutedTokens(tokens[:, None].expand(-1, 3).contiguous(), ids, torch.rand(ids.shape))


@pytest.mark.parametrize(
    "placement, ids, expected",
    [
        pytest.param([[0, 1, 2, 3]], [[3, 0]], [(0, None, [[3, 0]])], id="one-shard-gets-it-as-it-is"),
        pytest.param([[0, 1], [2, 3]], [[0, 1]], [(0, None, [[0, 1]])], id="one-token-one-shard"),
        pytest.param([[0, 1], [2, 3]], [[2, 3]], [(1, None, [[2, 3]])], id="the-other-shard"),
        pytest.param([[0, 1], [2, 3]], [[0, 3]], [(0, None, [[0, -1]]), (1, None, [[-1, 3]])], id="both-shards"),
        pytest.param(
            [[0, 1], [2, 3]],
            [[0, 1], [2, 0], [3, 2]],
            [(0, [0, 1], [[0, 1], [-1, 0]]), (1, [1, 2], [[2, -1], [3, 2]])],
            id="only-the-rows-of-a-shard",
        ),
        pytest.param([[0, 3], [2], [1]], [[3, 1]], [(0, None, [[3, -1]]), (2, None, [[-1, 1]])], id="any-placement"),
        pytest.param([[0, 1], [2, 3]], [[-1, -1]], [], id="no-expert-at-all"),
        pytest.param([[0, 1], [2, 3]], [[-1, 2], [-1, -1]], [(1, [0], [[-1, 2]])], id="fewer-experts"),
    ],
)
def test_a_batch_is_split_by_shard(placement, ids, expected):
    batch = work(ids)
    parts = Splitter(placement).split(batch)
    found = [
        (part.shard, part.rows if part.rows is None else part.rows.tolist(), part.work.topk_ids.tolist())
        for part in parts
    ]
    assert found == expected
    for part in parts:
        rows = slice(None) if part.rows is None else part.rows
        assert torch.equal(part.work.hidden, batch.hidden[rows])
        assert torch.equal(part.work.topk_weights, batch.topk_weights[rows])


@pytest.mark.parametrize("placement", [[[0, 1], [1, 2]], [[0], [2]], [[1, 2]]])
def test_a_placement_names_every_expert_once(placement):
    with pytest.raises(ValueError, match="every expert once"):
        Splitter(placement)


def test_partial_sums_are_added_where_their_tokens_are():
    batch = work([[0, 1], [2, 0], [3, 2]])
    parts = Splitter([[0, 1], [2, 3]]).split(batch)
    partials = [torch.tensor(rows).double().expand(-1, 3) for rows in ([[1.0], [2.0]], [[10.0], [20.0]])]
    total = combine(3, 3, parts, partials)
    assert torch.equal(total, torch.tensor([[1.0], [12.0], [20.0]]).expand(-1, 3))


def test_a_token_without_experts_gets_zeros():
    assert torch.equal(combine(2, 3, [], []), torch.zeros(2, 3))


@dataclass
class Seen:
    """A replica as the choice sees it."""

    live: bool = True
    suspect: bool = False
    in_flight: dict = field(default_factory=dict)


def busy(num_calls, **fields) -> Seen:
    return Seen(in_flight=dict.fromkeys(range(num_calls)), **fields)


@pytest.mark.parametrize(
    "replicas, holders, turn, chosen",
    [
        pytest.param([], [], 0, None, id="nobody"),
        pytest.param([busy(0, live=False)], [], 0, None, id="nobody-lives"),
        pytest.param([busy(5)], [], 0, 0, id="the-only-one"),
        pytest.param([busy(5)], [0], 0, None, id="the-only-one-has-it"),
        pytest.param([busy(2), busy(1), busy(3)], [], 0, 1, id="fewest-calls"),
        pytest.param([busy(2), busy(1), busy(3)], [1], 0, 0, id="fewest-of-those-that-do-not-have-it"),
        pytest.param([busy(1), busy(1), busy(1)], [], 0, 0, id="turn-0"),
        pytest.param([busy(1), busy(1), busy(1)], [], 2, 2, id="turn-2"),
        pytest.param([busy(1), busy(1), busy(1)], [], 3, 0, id="turn-wraps"),
        pytest.param([busy(0, suspect=True), busy(9)], [], 0, 1, id="rather-busy-than-suspect"),
        pytest.param([busy(0, suspect=True), busy(9, live=False)], [], 0, 0, id="rather-suspect-than-nobody"),
    ],
)
def test_which_replica_gets_a_call(replicas, holders, turn, chosen):
    assert choose_replica(replicas, [replicas[i] for i in holders], turn) == chosen
