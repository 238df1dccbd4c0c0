"""Expert replicas for tests: processes to be killed, and servers in a thread whose shard can be held still."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from kernels.interface import RoutedTokens
from kernels.reference import text as reference
from protos import expert_pb2
from services.checkpoint.placement import expert_placement
from services.expert.compute import Compute, native_shard
from services.expert.servicer import ExpertServicer, add_expert_service
from services.expert.wire_socket import wire_socket
from services.model.checkpoint import Checkpoint
from services.model.expert_shard import ExpertShard, load_expert_shard
from services.model.text_weights import expert_tensors
from services.runtime.server import start_server
from services.wire.introduction import ANSWER, Hello, LinkKind, pack_hello
from services.wire.introductions import Introductions
from tests.services.runtime.certificates import Authority


def short_folder(stack: ExitStack) -> Path:
    """A folder whose path leaves room for a socket's name."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ms-")))


def random_work(model: Path, num_tokens: int, *, seed: int = 0, experts: Sequence[int] | None = None) -> RoutedTokens:
    """Tokens of a tiny checkpoint with distinct experts each, chosen among `experts`."""
    text = Checkpoint(model).config.text
    generator = torch.Generator().manual_seed(seed)
    pool = torch.tensor(list(experts or range(text.n_routed_experts)), dtype=torch.int32)
    top_k = min(text.num_experts_per_tok, len(pool))
    chosen = [pool[torch.randperm(len(pool), generator=generator)[:top_k]] for _ in range(num_tokens)]
    return RoutedTokens(
        hidden=torch.randn(num_tokens, text.hidden_size, generator=generator),
        topk_ids=torch.stack(chosen) if chosen else torch.zeros(0, top_k, dtype=torch.int32),
        topk_weights=torch.rand(num_tokens, top_k, generator=generator),
    )


def plain_sum(model: Path, layer: int, work: RoutedTokens) -> Tensor:
    """What all shards together must return, from the reference kernel over all experts."""
    checkpoint = Checkpoint(model)
    experts = reference.pack_experts(
        expert_tensors(checkpoint, layer, expert) for expert in range(checkpoint.config.text.n_routed_experts)
    )
    return reference.expert_mlp(work.hidden, work.topk_ids, work.topk_weights, experts)


class HeldShard(ExpertShard):
    """A shard that can be told to wait: `hold()`, then `entered` says that a message is inside, `release()`."""

    @classmethod
    def load(cls, model: Path, shard: int, placement: Sequence[Sequence[int]]) -> Self:
        checkpoint = Checkpoint(model)
        loaded = load_expert_shard(checkpoint, placement[shard])
        held = cls.__new__(cls)
        held.__dict__ = loaded.__dict__
        held._gate, held.entered, held.num_calls = threading.Event(), threading.Event(), 0
        held._gate.set()
        return held

    def hold(self) -> None:
        self.entered.clear()
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def forward(self, layer: int, work: RoutedTokens) -> Tensor:
        self.num_calls += 1
        self.entered.set()
        assert self._gate.wait(30)
        return super().forward(layer, work)


SEALS = False  # the servers and processes that start from now on seal their frames over TCP


def introduced(server: "ServerThread", sock: socket.socket, kind: LinkKind = LinkKind.STREAM) -> socket.socket:
    """A connected socket of a caller whose token was accepted."""
    sock.sendall(pack_hello(Hello(kind, server.introductions.issue().token)))
    assert sock.recv(len(ANSWER)) == ANSWER
    return sock


class ServerThread:
    """One replica in a thread with its own loop, so that a test can block either side.

    native     frames are answered by native code, so the shard can be neither held nor replaced
    seals      frames over TCP are sealed; the key travels in the clear here, because a Unix socket has no TLS
    placement  for each shard its expert ids; None: the usual one
    """

    def __init__(
        self,
        model: Path,
        address: str,
        shard: int = 0,
        num_shards: int = 1,
        *,
        digest: bytes | None = None,
        native: bool = False,
        seals: bool | None = None,
        placement: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._seals = SEALS if seals is None else seals
        num_experts = Checkpoint(model).config.text.n_routed_experts
        self.shard = HeldShard.load(model, shard, placement or expert_placement(num_experts, num_shards))
        self.compute = Compute(self.shard, native_shard(self.shard, threads=1) if native else None)
        self.address = address
        self._identity = shard, num_shards, digest or Checkpoint(model).digest()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.shard.release()
        self.stop()
        self._thread.join(30)
        self._loop.close()

    def stop(self) -> None:
        """Begins to drain, as SIGTERM does."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        shard, num_shards, digest = self._identity
        is_unix = self.address.startswith("unix:")
        places = [Path(self.address.removeprefix("unix:") + ".raw")] if is_unix else []
        self.introductions = Introductions()
        self.wires = [
            wire_socket(place, self.compute, self.introductions, seals=self._seals)
            for place in [*places, ("127.0.0.1", 0)]
        ]
        for wire in self.wires:
            wire.start()
        self.description = description = expert_pb2.DescribeShardResponse(
            shard=shard,
            num_shards=num_shards,
            expert_ids=self.shard.expert_ids,
            checkpoint_digest=digest,
            raw_socket=str(places[0]) if places else "",
            wire_port=self.wires[-1].port,
        )
        servicer = ExpertServicer(description, self.compute, self.introductions, seals=self._seals)
        server, self.address = await start_server(lambda s: add_expert_service(servicer, s), self.address)
        self._started.set()
        await self._stop.wait()
        await asyncio.gather(servicer.drain(), *(wire.stop(5) for wire in self.wires))
        await server.stop(5)


class ExpertProcess:
    """`python -m services.expert` on a Unix socket."""

    def __init__(self, model: Path, address: str, shard: int = 0, num_shards: int = 1, **environment: str) -> None:
        self.address = address
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MOONSHARD_")},
            "MOONSHARD_MODEL": str(model),
            "MOONSHARD_LISTEN": address,
            "MOONSHARD_SHARD": str(shard),
            "MOONSHARD_NUM_SHARDS": str(num_shards),
            "MOONSHARD_THREADS": "1",
            "MOONSHARD_DRAIN_S": "10",
            "MOONSHARD_WIRE_PORT": "0",
            **environment,
        }
        self.lines: list[dict[str, object]] = []
        self.stderr = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        command = [sys.executable, "-m", "services.expert"]
        environment = {**self._environment, **self._tls()}
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _tls(self) -> dict[str, str]:
        """With certificates a replica seals frames over TCP; on a Unix socket it has no TLS all the same."""
        if not SEALS:
            return {}
        folder = Path(self.address.removeprefix("unix:") + ".tls")
        tls = Authority().write(folder)
        return {"MOONSHARD_TLS_CERT": str(tls.cert), "MOONSHARD_TLS_KEY": str(tls.key), "MOONSHARD_TLS_CA": str(tls.ca)}

    def wait_for(self, message: str, timeout_s: float = 60) -> dict[str, object]:
        """The first line of the log with this message."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            for line in self.lines:
                if line["msg"] == message:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no {message!r} within {timeout_s} s; stderr: {self.stderr[-2000:]}")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float = 60) -> int:
        """The exit code."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        self._reader.join(10)
        self._process = None
        return code

    def _read(self, stream) -> None:
        with stream:
            for line in stream:
                self.stderr += line
                if line.startswith("{"):
                    self.lines.append(json.loads(line))
