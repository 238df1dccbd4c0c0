"""A replica of two shards, both real, in one process: the stream between them, its losses, and what it refuses."""

import asyncio
import contextlib
import itertools
import random
import tempfile
from pathlib import Path

import pytest
from redis.asyncio import Redis

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import BlockServiceStub, add_BlockServiceServicer_to_server
from services.attention.assembly import Assembly
from services.attention.layers import frames as wire
from services.attention.layers import remote
from services.attention.layers import wire as wire_ways
from services.attention.layers.frames import FrameKind, LayerFrame
from services.attention.settings import AttentionSettings
from services.runtime.channels import open_channel
from services.runtime.errors import DeadlineExceeded, InvalidRequest, Unavailable, WireError
from services.runtime.server import start_server
from tests.services.runtime.certificates import Authority


def prompt(num_tokens, seed=0):
    return random.Random(seed).choices(range(320), k=num_tokens)


@pytest.fixture(params=["grpc", "tcp", "shared", "sealed"])
def carrier(request):
    """How the frames of a test travel."""
    return request.param


@pytest.fixture
def listening(carrier):
    """Settings of a further shard that offers that carrier."""
    if carrier in ("grpc", "tcp"):
        yield {"listen": "127.0.0.1:0", "wire_port": 0 if carrier == "tcp" else None}
        return
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        # A Unix socket has no TLS, but with certificates frames over TCP are sealed.
        tls = Authority().write(Path(folder) / "tls") if carrier == "sealed" else None
        files = {"tls_cert": tls.cert, "tls_key": tls.key, "tls_ca": tls.ca} if tls else {}
        names = itertools.count()
        yield {"wire_port": 0, **files, "folder": folder, "names": names}


class Further:
    """Shard 1 of 2 and its server."""

    def __init__(self, model, *, folder="", names=(), **changes):
        fixed = {"role": "decode", "dtype": "float32", "block_tokens": 16, "num_blocks": 64}
        if folder:
            fixed["listen"] = f"unix:{folder}/{next(names)}"
        self._settings = AttentionSettings(model=model, shard=1, num_shards=2, **{**fixed, **changes})
        self.address = self._settings.listen
        self.shard = None

    async def start(self):
        self.shard = Assembly(self._settings).further_shard()
        self.shard.servicer.wire.start()
        await self.shard.open()

        def add(server):
            server.add_generic_rpc_handlers((self.shard.servicer.handler(),))
            add_BlockServiceServicer_to_server(self.shard.block_servicer, server)

        self.server, self.address = await start_server(add, self.address)
        return self

    async def stop(self):
        if self.shard is not None:
            shard, self.shard = self.shard, None
            await asyncio.gather(self.server.stop(None), shard.servicer.wire.stop(5))
            await shard.close()


@pytest.fixture
async def start_further(tiny_checkpoint, listening):
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changes):
            further = await Further(tiny_checkpoint, **{**listening, **changes}).start()
            stack.push_async_callback(further.stop)
            return further

        yield start


@pytest.fixture
async def start_pair(start_rig, start_further, carrier):
    async def start(*, further=None, **changes):
        shard = await start_further(**(further or {}))
        forced = {"expert_transport": "tcp"} if carrier == "sealed" else {}
        rig = await start_rig(num_shards=2, next_shards=(shard.address,), **forced, **changes)
        return rig, shard

    return start


@pytest.mark.parametrize("num_tokens", [1, 17, 100])
async def test_tokens_are_those_of_the_reference(start_pair, reference, carrier, num_tokens):
    rig, _ = await start_pair()
    assert rig.replica.further[0]._connector.transport == {"sealed": "tcp"}.get(carrier, carrier)
    assert await rig.submit(prompt(num_tokens), 12).tokens() == reference.generate(prompt(num_tokens), 12)


async def test_what_runs_together_is_as_alone(start_pair, reference):
    rig, _ = await start_pair()
    requests = [rig.submit(prompt(n, seed=n), 10) for n in (1, 16, 33, 60)]
    for n, request in zip((1, 16, 33, 60), requests, strict=True):
        assert await request.tokens() == reference.generate(prompt(n, seed=n), 10)


@pytest.mark.parametrize("with_store", [True, False])
async def test_hand_over_between_replicas_of_two_shards(start_pair, reference, store, with_store):
    through = {"store": store} if with_store else {}
    prefill, prefill_shard = await start_pair(role="prefill", further=through, **through)
    decode, _ = await start_pair(further=through, **through)
    handed = await prefill.submit(prompt(70), 10, hand_over=True).handed_over()
    assert bool(handed.offer) != with_store
    expected = reference.generate(prompt(70), 10)
    request = decode.submit(
        [*prompt(70), expected[0]], 10, num_prompt=70, tail=handed, source=prefill, further=[prefill_shard.address]
    )
    first = await request.next()
    assert first.num_cached == 70
    assert [first.choices[0].token_id, *await request.tokens()] == expected[1:]


async def test_blocks_that_left_the_store_are_published_again_by_both(start_pair, store):
    rig, _ = await start_pair(role="prefill", store=store, further={"store": store})
    await rig.submit(prompt(64), 10, hand_over=True).handed_over()
    await rig.replica.store.delete([key async for key in kv_keys(store)])
    await rig.submit(prompt(64), 10, hand_over=True).handed_over()
    assert len([key async for key in kv_keys(store)]) == 2 * 4


async def kv_keys(url):
    """Names of the values that hold latent KV."""
    redis = Redis.from_url(url)
    try:
        async for key in redis.scan_iter(match="moonshard:0:kv/*"):
            yield key.decode().removeprefix("moonshard:0:")
    finally:
        await redis.aclose()


@pytest.mark.slow
async def test_a_lost_shard_fails_its_generations_and_is_found_again(start_pair, reference):
    rig, shard = await start_pair()
    request = rig.submit(prompt(40), 800)
    await request.next()
    await shard.stop()
    with pytest.raises(Unavailable):
        await request.tokens()
    waiting = rig.submit(prompt(40), 8)  # waits for the shard
    await asyncio.sleep(0.3)
    assert waiting.events.empty()
    await shard.start()
    assert await waiting.tokens() == reference.generate(prompt(40), 8)


async def test_a_shard_that_drains_gives_the_streams_back(start_pair):
    rig, shard = await start_pair()
    request = rig.submit(prompt(40), 800)
    await request.next()
    await shard.shard.servicer.drain()
    with pytest.raises(Unavailable):
        await request.tokens()


@pytest.mark.slow
async def test_a_shard_that_hangs_runs_into_the_deadline(start_pair, monkeypatch):
    rig, shard = await start_pair(expert_deadline_s=0.3)
    layers = shard.shard.servicer._layers

    async def hang(*args):
        await asyncio.sleep(1.0)
        return await forward(*args)

    forward = layers.forward
    monkeypatch.setattr(layers, "forward", hang)
    with pytest.raises(DeadlineExceeded, match=r"took more than 0\.3 s"):
        await rig.submit(prompt(5), 5).tokens()
    await asyncio.sleep(1.0)


async def test_an_error_of_a_shard_is_not_hidden(start_pair, monkeypatch):
    rig, shard = await start_pair()

    async def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(shard.shard.servicer._layers, "forward", broken)
    with pytest.raises(Unavailable, match="internal error in a layer shard"):
        await rig.submit(prompt(5), 5).tokens()


async def test_an_engine_does_not_start_without_its_shard(start_rig, monkeypatch, tiny_checkpoint):
    monkeypatch.setattr(remote, "RECONNECT_S", 0.02)
    settings = AttentionSettings(
        listen="h:1", model=tiny_checkpoint, role="decode", num_shards=2, next_shards="127.0.0.1:1", num_blocks=2
    )
    replica = Assembly(settings).replica()
    with pytest.raises(Unavailable, match=r"did not answer within 0\.2 s"):
        await replica.open(0.2)
    await replica.close()


async def test_an_engine_with_more_blocks_is_refused(start_further, tiny_checkpoint):
    further = await start_further(num_blocks=16)
    settings = AttentionSettings(
        listen="h:1", model=tiny_checkpoint, role="decode", num_shards=2, next_shards=further.address,
        num_blocks=32, dtype="float32", block_tokens=16,
    )  # fmt: skip
    replica = Assembly(settings).replica()
    with pytest.raises(WireError, match="the engine has 32 blocks, this shard has room for 16"):
        await replica.open(5.0)
    await replica.close()


async def say(address, *messages):
    """The answers of a shard to raw messages."""
    async with open_channel(address) as channel:
        stream = channel.stream_stream(wire_ways.RUN)()
        answers = []
        for message in messages:
            await stream.write(message)
            answers.append(LayerFrame.from_bytes(await stream.read()))
        stream.cancel()
        return answers


async def test_a_stream_begins_with_hello(start_further):
    further = await start_further()
    (answer,) = await say(further.address, wire.frame(FrameKind.FORWARD, 3))
    assert (answer.kind, bytes(answer.body)) == (FrameKind.FAILED, b"a stream begins with HELLO")


async def test_callers_that_are_silent_or_refused_leave_the_engine_alone(start_further):
    further = await start_further()
    hello = wire.frame(FrameKind.HELLO, 0, further.shard.servicer._hello)
    async with open_channel(further.address) as channel:
        engine, silent = (channel.stream_stream(wire_ways.RUN)() for _ in range(2))
        await engine.write(hello)
        assert LayerFrame.from_bytes(await engine.read()).kind == FrameKind.HELLO
        await asyncio.sleep(0.1)  # until the silent one is there
        (refused,) = await say(further.address, wire.frame(FrameKind.HELLO, 0, b"x"))
        assert refused.kind == FrameKind.FAILED
        (other,) = await say(further.address, wire.HEADER.pack(wire.MAGIC, 99, FrameKind.HELLO, 0))
        assert (other.kind, b"version 99" in bytes(other.body)) == (FrameKind.FAILED, True)
        await engine.write(wire.frame(FrameKind.PUBLISH_MISSING, 9))
        assert LayerFrame.from_bytes(await engine.read()).call == 9
        silent.cancel()


@pytest.mark.parametrize(
    "kind, body, reason",
    [
        (FrameKind.FORWARD, b"short", b"too short"),
        (FrameKind.PUBLISH, b"x", b"not a list of blocks"),
        (FrameKind.FETCH_TAIL, b"x", b"a tail of 1 bytes"),
        (FrameKind.FETCH_OFFERED, b"x", b"an offer of 1 bytes"),
        (FrameKind.FAILED, b"", b"FAILED is not a request"),
    ],
)
async def test_a_bad_frame_gets_an_error_and_the_stream_goes_on(start_further, kind, body, reason):
    further = await start_further()
    hello = wire.frame(FrameKind.HELLO, 0, further.shard.servicer._hello)
    good = wire.frame(FrameKind.PUBLISH_MISSING, 9, b"")
    answers = await say(further.address, hello, wire.frame(kind, 8, body), good)
    assert [(answer.kind, answer.call) for answer in answers] == [
        (FrameKind.HELLO, 0), (FrameKind.FAILED, 8), (FrameKind.PUBLISH_MISSING, 9),
    ]  # fmt: skip
    assert reason in bytes(answers[1].body)


async def test_offers_are_released_at_shard_0_alone(start_further):
    further = await start_further()
    async with open_channel(further.address) as channel:
        with pytest.raises(InvalidRequest) as refused:
            await BlockServiceStub(channel).ReleaseOffer(pb.ReleaseOfferRequest(offer="o" * 32))
    assert refused.value.field == "offer"
