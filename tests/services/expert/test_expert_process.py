"""The process: what it reads, what it says about itself, what stops it."""

import asyncio
import shutil
import signal
import urllib.request

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import expert_pb2, expert_pb2_grpc
from services.checkpoint.placement import expert_placement
from services.expert.settings import ExpertSettings
from services.model.checkpoint import Checkpoint
from services.model.tensor_names import expert_specs
from services.runtime.channels import open_channel
from tests.services.expert.serving import ExpertProcess, short_folder

pytestmark = pytest.mark.slow


def tensor_bytes(model, expert_ids) -> int:
    """Packed weights and scales of these experts in every MoE layer, from their shapes."""
    text = Checkpoint(model).config.text
    specs = [spec for layer in text.moe_layers for e in expert_ids for spec in expert_specs(text, layer, e).values()]
    return sum(spec.dtype.itemsize * spec.shape[0] * spec.shape[1] for spec in specs)


def read_page(url) -> str:
    with urllib.request.urlopen(url) as page:
        return page.read().decode()


async def test_a_replica_reads_its_own_experts_and_says_what_it_is(model, stack):
    address = f"unix:{short_folder(stack)}/expert"
    process = stack.enter_context(ExpertProcess(model, address, 1, 3, MOONSHARD_METRICS_LISTEN="127.0.0.1:0"))
    process.wait_for("ready")
    loaded = process.wait_for("experts loaded")
    expert_ids = expert_placement(16, 3)[1]
    assert loaded["bytes_read"] == tensor_bytes(model, expert_ids)
    assert (loaded["shard"], loaded["num_shards"], loaded["layers"]) == (1, 3, 3)
    async with open_channel(address) as channel:
        found = await expert_pb2_grpc.ExpertServiceStub(channel).Describe(expert_pb2.DescribeShardRequest())
        assert (found.shard, found.num_shards, list(found.expert_ids)) == (1, 3, expert_ids)
        assert found.checkpoint_digest == Checkpoint(model).digest()
        assert found.raw_socket == address.removeprefix("unix:") + ".raw"
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="moonshard.v1.ExpertService")
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    metrics_address = process.wait_for("metrics")["address"]
    text = await asyncio.to_thread(read_page, f"http://{metrics_address}/metrics")
    assert f"moonshard_load_bytes_total {float(loaded['bytes_read'])!r}" in text
    assert f'moonshard_expert_tokens_total{{expert="{expert_ids[0]}"}} 0.0' in text
    assert 'moonshard_expert_layer_tokens_total{layer="3"} 0.0' in text
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


async def test_over_tcp_there_is_no_raw_socket(model, stack):
    process = stack.enter_context(ExpertProcess(model, "127.0.0.1:0"))
    address = process.wait_for("listening")["address"]
    process.wait_for("ready")
    async with open_channel(address) as channel:
        found = await expert_pb2_grpc.ExpertServiceStub(channel).Describe(expert_pb2.DescribeShardRequest())
    assert found.raw_socket == ""


def test_a_damaged_checkpoint_stops_the_process_with_a_sentence(model, stack):
    folder = short_folder(stack)
    shutil.copytree(model, folder / "damaged")
    damaged = Checkpoint(folder / "damaged").file_of("language_model.model.layers.2.mlp.experts.5.up_proj.weight_scale")
    damaged.write_bytes(damaged.read_bytes()[:-10])
    process = stack.enter_context(ExpertProcess(folder / "damaged", f"unix:{folder}/expert"))
    assert process.wait() == 2
    [line] = [line for line in process.lines if line["level"] == "critical"]
    assert line["error"] == "CheckpointError"
    assert damaged.name in line["msg"]
    assert "truncated" in line["msg"]
    assert "Traceback" not in process.stderr


def test_more_shards_than_experts_stop_the_process_with_a_sentence(model, stack):
    process = stack.enter_context(ExpertProcess(model, f"unix:{short_folder(stack)}/expert", 0, 17))
    assert process.wait() == 2
    assert "MOONSHARD_NUM_SHARDS=17: 16 experts cannot be split into 17 shards" in process.stderr


def test_a_shard_outside_its_range_stops_the_process_by_name(model, stack):
    process = stack.enter_context(ExpertProcess(model, f"unix:{short_folder(stack)}/expert", 2, 2))
    assert process.wait() == 2
    assert process.stderr == "MOONSHARD_SHARD=2 is outside 0..1\n"


@pytest.mark.parametrize(
    "listen, raw",
    [
        pytest.param("unix:/run/expert", "/run/expert.raw", id="beside"),
        pytest.param("127.0.0.1:0", None, id="tcp"),
        pytest.param("unix:/" + "x" * 102, "/" + "x" * 102 + ".raw", id="just-fits"),
        pytest.param("unix:/" + "x" * 103, None, id="no-room-for-the-ending"),
    ],
)
def test_where_the_raw_socket_is(listen, raw):
    settings = ExpertSettings(listen=listen, model="/model")
    assert (str(settings.raw_socket) if settings.raw_socket else None) == raw
