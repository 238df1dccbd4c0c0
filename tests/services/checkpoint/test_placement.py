import pytest

from services.checkpoint.placement import expert_placement, layer_ranges


@pytest.mark.parametrize("num_experts, num_shards", [(1, 1), (16, 1), (16, 3), (384, 7), (5, 5)])
def test_every_expert_has_one_shard(num_experts, num_shards):
    placed = expert_placement(num_experts, num_shards)
    assert [expert for shard in placed for expert in shard] == list(range(num_experts))
    sizes = [len(shard) for shard in placed]
    assert len(sizes) == num_shards
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param((4, 0), "4 experts cannot be split into 0 shards", id="no-shard"),
        pytest.param((4, 5), "4 experts cannot be split into 5 shards", id="too-many"),
    ],
)
def test_impossible_placements(arguments, message):
    with pytest.raises(ValueError, match=message):
        expert_placement(*arguments)


@pytest.mark.parametrize(
    "num_layers, num_shards, ranges",
    [
        pytest.param(61, 1, [range(61)], id="one"),
        pytest.param(61, 2, [range(31), range(31, 61)], id="two"),
        pytest.param(4, 3, [range(2), range(2, 3), range(3, 4)], id="three"),
        pytest.param(2, 2, [range(1), range(1, 2)], id="one-each"),
    ],
)
def test_layer_ranges(num_layers, num_shards, ranges):
    assert layer_ranges(num_layers, num_shards) == ranges


def test_more_shards_than_layers():
    with pytest.raises(ValueError, match="2 layers cannot be split into 3 shards"):
        layer_ranges(2, 3)
