"""An attention replica inside the test process: the real engine thread, layers, checkpoint and store."""

import asyncio
import contextlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from protos.attention_pb2_grpc import add_BlockServiceServicer_to_server
from services.attention.assembly import Assembly
from services.attention.engine.generation import Event, Failed, Generation, HandedOver, Tokens
from services.attention.layers.blocks import Offer
from services.attention.replica import EngineReplica
from services.attention.sampling.on_host import SamplingParams
from services.attention.settings import AttentionSettings
from services.checkpoint.block_names import BlockNames
from services.checkpoint.vocabulary import load_tokens
from services.local.random_checkpoint.write import write_random_checkpoint
from services.runtime.blobs import BlobStore
from services.runtime.redis_server import RedisServer
from services.runtime.server import start_server
from services.tokenizer.vocabulary import load_vocabulary
from tests.services.attention.constraint.constraining import Desk
from tests.small_tokenizer import write_small_tokenizer

ROOT = Path(__file__).resolve().parents[3]


def load_reference():
    spec = importlib.util.spec_from_file_location("reference_model", ROOT / "tests" / "reference" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_random_checkpoint(folder, seed=7)
    return folder


@pytest.fixture(scope="session")
def reference(tiny_checkpoint):
    return load_reference().ReferenceModel(tiny_checkpoint)


@dataclass
class Request:
    """One generation and everything the engine said of it."""

    generation: Generation
    events: "asyncio.Queue[Event]"

    async def next(self, timeout_s=30.0):
        async with asyncio.timeout(timeout_s):
            return await self.events.get()

    async def tokens(self):
        """All tokens to the end."""
        new = []
        while True:
            event = await self.next()
            if isinstance(event, Failed):
                raise event.error
            assert isinstance(event, Tokens)
            new += [choice.token_id for choice in event.choices]
            if event.finish_reason is not None:
                return new

    async def handed_over(self):
        event = await self.next()
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, HandedOver)
        return event


class Rig:
    """A replica and the requests put to it."""

    def __init__(self, replica: EngineReplica, server, address):
        self.replica = replica
        self.engine = replica.engine
        self.server, self.address = server, address

    def submit(
        self,
        token_ids,
        num_tokens,
        *,
        num_prompt=None,
        hand_over=False,
        tail=None,
        source=None,
        further=(),
        **sampling,
    ):
        """Puts a request to the engine.

        tail, source, further  what was handed over, by which rig, with which addresses of further shards
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue()
        limits = self.replica.limits
        num_prompt = num_prompt or len(token_ids)
        generation = Generation(
            request_id="test",
            token_ids=list(token_ids),
            num_prompt=num_prompt,
            sampling=SamplingParams(**{"temperature": 0.0, **sampling}),
            max_tokens=min(num_prompt + num_tokens, limits.context_tokens),
            names=BlockNames(limits.names_root, limits.block_tokens, num_prompt=num_prompt),
            sink=lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
            hand_over=hand_over,
            tail_name=tail.tail_name if tail else "",
            tail_tokens=tail.num_tokens if tail else 0,
            offer=Offer(tail.offer, [source.address, *further]) if tail and tail.offer else None,
        )
        self.engine.submit(generation)
        return Request(generation, events)

    async def idle(self, timeout_s=10.0):
        """Waits until nothing runs, then checks that every block is free."""
        async with asyncio.timeout(timeout_s):
            while self.engine.load.num_running or self.engine.load.num_waiting:
                await asyncio.sleep(0.01)
        assert self.engine.find_faults() == []
        assert self.engine.load.num_free_blocks == self.replica.limits.num_blocks


@pytest.fixture
async def start_rig(tiny_checkpoint):
    """Starts replicas with the given settings and stops them after the test, which must leave them empty."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changes):
            defaults = {
                "listen": "127.0.0.1:0",
                "model": tiny_checkpoint,
                "role": "decode",
                "dtype": "float32",
                "block_tokens": 16,
                "num_blocks": 64,
                "step_tokens": 32,
                "handoff_hold_s": 1.0,
            }
            replica = Assembly(AttentionSettings(**{**defaults, **changes})).replica()
            await replica.open(30.0)
            stack.push_async_callback(replica.close)
            server, address = await start_server(
                lambda server: add_BlockServiceServicer_to_server(replica.block_servicer, server), "127.0.0.1:0"
            )
            stack.push_async_callback(server.stop, None)
            rig = Rig(replica, server, address)
            stack.push_async_callback(rig.idle)
            return rig

        yield start


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def store(redis):
    """The URL of a store."""
    return redis.url


@pytest.fixture
async def blobs(redis):
    opened = BlobStore([redis.url], ttl_s=60)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Constraints over a vocabulary of 1024 tokens."""
    folder = tmp_path_factory.mktemp("small")
    write_small_tokenizer(folder, 1024)
    return Desk(load_tokens(folder, 1280), load_vocabulary(folder))


@pytest.fixture(scope="session")
def real(released):
    """The same over K2.6's own."""
    return Desk(load_tokens(released, 163840), load_vocabulary(released))
