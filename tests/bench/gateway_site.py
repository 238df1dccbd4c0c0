"""The processes of the gateway's benchmark: a replica without a model, a tokenizer and a gateway."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from services.tokenizer.vocabulary import load_vocabulary
from tests.bench.token_client import Answer, Client, connect
from tests.conftest import RELEASED, ROOT

QUESTION = [{"role": "user", "content": "What is the weather like in Paris today?"}]
NUM_WARM = 65


@dataclass
class Bench:
    """The running processes. `ended` has what the replica noted, by the seed of the generation."""

    address: str
    gateway: psutil.Process
    tokenizer: psutil.Process
    ended: dict[int, dict[str, Any]] = field(default_factory=dict)
    seed: int = 1

    def take_seed(self) -> int:
        self.seed += 1
        return self.seed

    def cpu_s(self) -> list[float]:
        """Return the processor time of gateway and tokenizer so far."""
        times = [process.cpu_times() for process in (self.gateway, self.tokenizer)]
        return [one.user + one.system for one in times]

    async def noted(self, answer: Answer) -> dict[str, Any]:
        """Return what the replica noted of an answer."""
        async with asyncio.timeout(10):
            while answer.seed not in self.ended:
                await asyncio.sleep(0.001)
        return self.ended[answer.seed]


@asynccontextmanager
async def process(module: str, **settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start a service and yield the address from its log; the rest of the log is read and dropped."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MOONSHARD_")}
    env |= {f"MOONSHARD_{name}": value for name, value in settings.items()}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env=env, stderr=asyncio.subprocess.PIPE, limit=2**20
    )
    assert running.stderr is not None
    try:
        address = None
        while address is None:
            address = json.loads(await running.stderr.readline()).get("address")
        reading = asyncio.create_task(_drop(running.stderr))
        yield running, address
        reading.cancel()
    finally:
        running.terminate()
        await running.wait()


async def _drop(stream: asyncio.StreamReader) -> None:
    while await stream.read(2**20):
        pass


@asynccontextmanager
async def replica(*arguments: object) -> AsyncIterator[tuple[str, dict[int, dict[str, Any]]]]:
    """Start the replica; yield its address, and what it notes of generations that have ended."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.token_engine", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    assert running.stdout is not None
    ended: dict[int, dict[str, Any]] = {}

    async def read() -> None:
        while line := await running.stdout.readline():  # type: ignore[union-attr]
            note = json.loads(line)
            ended[note["seed"]] = note

    try:
        address = (await running.stdout.readline()).decode().strip()
        reading = asyncio.create_task(read())
        yield address, ended
        reading.cancel()
    finally:
        running.terminate()
        await running.wait()


@asynccontextmanager
async def bench(folder: Path, step_s: float) -> AsyncIterator[Bench]:
    """Start all processes."""
    vocabulary = load_vocabulary(folder)
    (token_id,) = vocabulary.encode("a")
    async with (
        replica(token_id, step_s, vocabulary.context_tokens) as (engine, ended),
        process("services.tokenizer", LISTEN="127.0.0.1:0", MODEL=str(folder)) as (tokenizer, tokenizer_address),
        process("gateway", LISTEN="127.0.0.1:0", TOKENIZERS=tokenizer_address, DECODES=engine) as (gateway, address),
    ):
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http:
            while (await http.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)
        running = Bench(address, psutil.Process(gateway.pid), psutil.Process(tokenizer.pid), ended)
        async with clients(running, 1) as (client,):
            await client.ask(running.take_seed(), NUM_WARM, QUESTION)
        yield running


@asynccontextmanager
async def clients(running: Bench, num_clients: int) -> AsyncIterator[list[Client]]:
    """Connect clients."""
    async with AsyncExitStack() as stack:
        connected = [await connect(running.address) for _ in range(num_clients)]
        for client in connected:
            stack.callback(client.close)
        yield connected


def released_folder(parent: Path) -> Path:
    """Return a folder with the released vocabulary."""
    source = Path(os.environ.get("MOONSHARD_RELEASED") or ROOT.parent / "shared" / "data" / "kimi-k2-tokenizer")
    if (source / "config.json").is_file():
        return source
    for name, name_there in RELEASED.items():
        (parent / name).symlink_to(source / name_there)
    return parent
