"""What is said about settings that do not fit together, and what a pod makes of its ordinal."""

import pytest
from pydantic import ValidationError

from services.attention.assembly import Assembly
from services.attention.layers.frames import FrameKind, frame
from services.attention.settings import AttentionSettings
from services.local.random_checkpoint.write import write_random_checkpoint

NAME = "dns:m-expert.ns.svc:50051"
TEMPLATE = "m-decode-{ordinal}.m-decode.ns.svc:50051"


def settings(**given):
    return AttentionSettings(listen="h:1", model="/m", role="decode", **given)


@pytest.mark.parametrize(
    "ordinal, further",
    [
        pytest.param(0, [1, 2], id="engine"),
        pytest.param(2, [], id="last-shard"),
        pytest.param(6, [7, 8], id="third-engine"),
    ],
)
def test_an_engine_knows_the_pods_of_its_replica(ordinal, further):
    found = settings(num_shards=3, ordinal=ordinal, next_shards=TEMPLATE)
    assert found.shard == ordinal % 3
    assert list(found.further_shards) == [f"m-decode-{pod}.m-decode.ns.svc:50051" for pod in further]


def test_told_shards():
    assert settings(num_shards=2, next_shards="h:2").further_shards == ("h:2",)
    assert settings(num_shards=2, shard=1).further_shards == ()


def test_experts_behind_a_name():
    found = settings(experts=NAME, expert_shards=3)
    assert (found.expert_name, found.expert_addresses) == (NAME, [[], [], []])
    given = settings(experts="h:1|h:2,h:3")
    assert (given.expert_name, given.expert_addresses) == ("", [["h:1", "h:2"], ["h:3"]])


@pytest.mark.parametrize(
    "given, complaint",
    [
        pytest.param({"num_shards": 2}, "names 0 shards, shard 0 of 2 needs 1", id="engine-without-shards"),
        pytest.param({"num_shards": 2, "next_shards": TEMPLATE}, "MOONSHARD_ORDINAL must be set", id="no-ordinal"),
        pytest.param({"num_shards": 3, "ordinal": 0, "next_shards": f"{TEMPLATE},h:1"}, "only address", id="mixed"),
        pytest.param({"experts": NAME}, "MOONSHARD_EXPERT_SHARDS is missing", id="how-many-experts"),
        pytest.param(
            {"experts": "h:1", "expert_shards": 1}, "is only for MOONSHARD_EXPERTS=dns", id="experts-by-address"
        ),
        pytest.param({"experts": "dns:x", "expert_shards": 1}, "MOONSHARD_EXPERTS: .* is not dns", id="bad-name"),
    ],
)
def test_bad_settings(given, complaint):
    with pytest.raises(ValidationError, match=complaint):
        settings(**given)


async def test_a_further_shard_refuses_an_engine_that_means_another(tmp_path):
    model = tmp_path / "tiny"
    write_random_checkpoint(model)

    def assembly(shard):
        given = {"shard": shard, "num_shards": 3, "next_shards": "h:1,h:2" if shard == 0 else ""}
        return Assembly(AttentionSettings(listen="h:1", model=model, role="decode", num_blocks=2, **given))

    engine = assembly(0)
    hellos = [frame(FrameKind.HELLO, 0, engine._layout.hello(shard, 2)) for shard in (1, 2)]
    servicers = [assembly(shard).further_shard().servicer for shard in (1, 2)]
    refusals = [[servicer._refusal(hello) for hello in hellos] for servicer in servicers]
    assert refusals[0][0] == refusals[1][1] == ""
    assert refusals[0][1] == refusals[1][0] == "engine and shard differ in checkpoint, layers or layout"
