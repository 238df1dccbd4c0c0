"""The processes of a cluster, and that each accepts its settings."""

import json
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from services.attention.settings import AttentionSettings
from services.autoscaler.settings import AutoscalerSettings
from services.expert.settings import ExpertSettings
from services.local.processes import StopStage
from services.local.run_folder import RunFolder
from services.local.threads import Threads
from services.local.topology import Topology, default_threads, process_specs
from services.tokenizer.settings import TokenizerSettings
from services.vision.settings import VisionSettings


@pytest.fixture
def folder():
    with RunFolder() as made:
        yield made


def specs(folder, **choices):
    return {spec.name: spec for spec in process_specs(Topology(Path("/model"), **choices), folder, "redis-server")}


def test_default_cluster(folder):
    found = specs(folder)
    assert list(found) == ["redis-0", "tokenizer-0", "expert-0-0", "expert-1-0", "prefill-0", "decode-0", "gateway"]
    assert [name for name, spec in found.items() if spec.stop_stage is StopStage.GATEWAY] == ["gateway"]
    assert [name for name, spec in found.items() if spec.stop_stage is StopStage.ENGINE] == ["prefill-0", "decode-0"]
    assert [name for name, spec in found.items() if spec.stop_stage is StopStage.STORE] == ["redis-0"]


def test_smallest_cluster(folder):
    found = specs(folder, experts=0, prefills=0, stores=0)
    assert list(found) == ["tokenizer-0", "decode-0", "gateway"]
    assert found["decode-0"].env["MOONSHARD_EXPERTS"] == ""
    assert found["decode-0"].env["MOONSHARD_STORE"] == ""
    assert found["gateway"].env["MOONSHARD_PREFILLS"] == ""


def test_replicas_and_shards_know_each_other(folder):
    found = specs(folder, experts=2, expert_replicas=2, attention_shards=2, decodes=2, stores=2)
    at = {name: f"unix:{folder.path}/{name}.sock" for name in found}
    assert found["decode-1"].env["MOONSHARD_EXPERTS"] == (
        f"{at['expert-0-0']}|{at['expert-0-1']},{at['expert-1-0']}|{at['expert-1-1']}"
    )
    assert found["decode-1"].env["MOONSHARD_NEXT_SHARDS"] == at["decode-1-shard-1"]
    assert found["decode-1-shard-1"].env["MOONSHARD_NEXT_SHARDS"] == ""
    assert found["decode-1-shard-1"].env["MOONSHARD_SHARD"] == "1"
    assert found["decode-1-shard-1"].stop_stage is StopStage.HELPER
    assert found["decode-1"].env["MOONSHARD_STORE"] == ",".join(
        f"unix://{folder.path}/{name}.sock" for name in ("redis-0", "redis-1")
    )
    # Clients connect to engines only.
    assert found["gateway"].env["MOONSHARD_DECODES"] == f"{at['decode-0']},{at['decode-1']}"
    assert all(spec.env["MOONSHARD_LISTEN"] == at[name] for name, spec in found.items() if at[name] == spec.address)


def test_vision_is_known_to_the_gateway_and_knows_the_store(folder):
    found = specs(folder, visions=2, dtype="float32")
    assert found["gateway"].env["MOONSHARD_VISIONS"] == ",".join(found[f"vision-{n}"].address for n in range(2))
    assert found["vision-1"].env["MOONSHARD_STORE"] == found["decode-0"].env["MOONSHARD_STORE"]
    assert found["vision-1"].env["MOONSHARD_DTYPE"] == "float32"
    assert specs(folder)["gateway"].env["MOONSHARD_VISIONS"] == ""


SETTINGS = {
    "gateway": GatewaySettings,
    "services.attention": AttentionSettings,
    "services.expert": ExpertSettings,
    "services.tokenizer": TokenizerSettings,
    "services.vision": VisionSettings,
}


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param({}, id="default"),
        pytest.param({"experts": 0, "prefills": 0, "stores": 0}, id="smallest"),
        pytest.param(
            {"experts": 3, "expert_replicas": 2, "attention_shards": 3, "tokenizers": 2, "visions": 2}, id="large"
        ),
    ],
)
def test_every_process_can_read_what_it_is_told(folder, monkeypatch, choices):
    for name, spec in specs(folder, **choices).items():
        if name.startswith("redis-"):
            continue
        kind = SETTINGS[spec.argv[-1]]
        with monkeypatch.context() as patch:
            for variable, value in spec.env.items():
                patch.setenv(variable, value)
            kind()
        # A process would ignore an unknown variable silently.
        assert {variable.removeprefix("MOONSHARD_").lower() for variable in spec.env} <= set(kind.model_fields), name


def test_settings_by_role(folder):
    settings = {
        "all": {"LOG_LEVEL": "debug"},
        "attention": {"NUM_BLOCKS": "7", "DTYPE": "float32"},
        "decode": {"NUM_BLOCKS": "9"},
    }
    found = specs(folder, settings=settings)
    assert {spec.env.get("MOONSHARD_LOG_LEVEL") for name, spec in found.items() if name != "redis-0"} == {"debug"}
    assert found["prefill-0"].env["MOONSHARD_NUM_BLOCKS"] == "7"
    assert found["decode-0"].env["MOONSHARD_NUM_BLOCKS"] == "9"
    assert found["decode-0"].env["MOONSHARD_DTYPE"] == "float32"
    assert "MOONSHARD_NUM_BLOCKS" not in found["expert-0-0"].env


def test_a_gateway_is_known_by_its_run_folder(folder):
    """A header of the answer distinguishes two clusters that chose the same port."""
    gateway = specs(folder)["gateway"]
    assert gateway.ready.health_id == gateway.env["MOONSHARD_HEALTH_ID"] == folder.path.name


def test_sizes_reach_their_processes(folder):
    found = specs(folder, store_bytes=5 << 20)
    argv = found["redis-0"].argv
    assert argv[argv.index("--maxmemory") + 1] == str(5 << 20)


def test_all_that_use_the_store_share_its_key(folder):
    found = specs(folder, visions=1)
    users = ("vision-0", "prefill-0", "decode-0", "gateway")
    assert {found[name].env["MOONSHARD_STORE_MAC_FILE"] for name in users} == {str(folder.store_key)}
    assert len(folder.store_key.read_text()) == 64
    assert folder.store_key.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "host, listen, url",
    [
        pytest.param("127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:8000", id="this-machine"),
        pytest.param("0.0.0.0", "0.0.0.0:8000", "http://127.0.0.1:8000", id="everybody"),
        pytest.param("::1", "[::1]:8000", "http://[::1]:8000", id="ipv6"),
        pytest.param("::", "[::]:8000", "http://[::1]:8000", id="everybody-ipv6"),
    ],
)
def test_gateway_address(folder, host, listen, url):
    gateway = specs(folder, host=host)["gateway"]
    assert (gateway.env["MOONSHARD_LISTEN"], gateway.address) == (listen, url)


@pytest.mark.parametrize(
    "num_cores, choices, threads",
    [
        pytest.param(2, {}, Threads(2, 1, 1), id="laptop"),
        pytest.param(2, {"experts": 0, "prefills": 0}, Threads.same(2), id="one-process-has-all-cores"),
        pytest.param(8, {"experts": 0}, Threads.same(4), id="local-experts"),
        pytest.param(64, {"visions": 1}, Threads(64, 32, 12), id="workstation"),
        pytest.param(
            64, {"experts": 4, "expert_replicas": 2, "attention_shards": 2, "decodes": 3}, Threads(21, 8, 4), id="many"
        ),
        pytest.param(1, {"experts": 4, "decodes": 3}, Threads(1, 1, 1), id="one-core"),
    ],
)
def test_processes_that_take_turns_have_all_cores_each(folder, num_cores, choices, threads):
    topology = Topology(Path("/model"), **choices)
    assert default_threads(num_cores, topology) == threads
    found = specs(folder, **choices, threads=threads)
    assert found["decode-0"].env["MOONSHARD_THREADS"] == str(threads.attention)
    assert {spec.env["MOONSHARD_THREADS"] for name, spec in found.items() if name.startswith("expert")} <= {
        str(threads.expert)
    }


def test_on_demand(folder):
    found = specs(folder, idle_s=30, visions=1, expert_replicas=2)
    autoscaler = AutoscalerSettings(**variables(found["autoscaler"]))
    assert {role: limits.max for role, limits in autoscaler.limits.items()} == {
        "prefill": 1,
        "decode": 1,
        "expert": 2,
        "vision": 1,
    }
    assert (autoscaler.idle_s, autoscaler.mode) == (30, "local")
    gateway = GatewaySettings(**variables(found["gateway"]))
    assert gateway.wake_s > 0
    assert autoscaler.gateways == (gateway.demand_listen,)
    on_demand = {name: (spec.role, spec.replica) for name, spec in found.items() if spec.role}
    assert on_demand.keys() == found.keys() - {"redis-0", "tokenizer-0", "gateway", "autoscaler"}
    assert on_demand["expert-1-1"] == ("expert", 1)
    assert not any(spec.role for spec in specs(folder).values())


def variables(spec):
    """Return the variables of a process by the names of its settings."""
    fields = {name.removeprefix("MOONSHARD_").lower(): value for name, value in spec.env.items()}
    return {**fields, "roles": json.loads(fields["roles"])} if "roles" in fields else fields
