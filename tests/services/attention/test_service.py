"""AttentionService over gRPC: what a request becomes, what its answers say, and what ends it."""

import asyncio
import random

import pytest

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import AttentionServiceStub, add_AttentionServiceServicer_to_server
from protos.lanes_pb2 import LaneCall
from services.attention.service import AttentionServicer
from services.checkpoint.markers import STOPS
from services.checkpoint.vocabulary import load_tokens
from services.runtime.channels import open_channel
from services.runtime.errors import DeadlineExceeded, InvalidRequest, Unavailable
from services.runtime.lanes.caller import LaneStream
from services.runtime.server import start_server

GREEDY = {"temperature": 0.0, "top_p": 1.0}


def prompt(num_tokens, seed=0):
    return random.Random(seed).choices(range(320), k=num_tokens)


def request(kind, num_tokens, num_new, generated=(), **how):
    prompt_ids = [*prompt(num_tokens), *generated]
    sampling = pb.Sampling(**{**GREEDY, "max_new_tokens": num_new, **how.pop("sampling", {})})
    return kind(prompt=pb.Prompt(token_ids=prompt_ids, num_prompt_tokens=num_tokens), sampling=sampling, **how)


async def parts_of(lane):
    """Yield the messages of a generation to its last."""
    while True:
        for part in await lane.receive(20):
            yield part
            if part.finish_reason:
                return


class Client:
    def __init__(self, rig, servicer, stub):
        self.rig, self.servicer, self.stub = rig, servicer, stub
        self.stream = self.new_stream()

    async def decode(self, *args, **how):
        lane = self.start(*args, **how)
        try:
            return [each async for each in parts_of(lane)]
        finally:
            lane.close(is_over=True)

    def new_stream(self):
        return LaneStream(self.stub.Generate(), pb.GenerateRequest, "the replica")

    def start(self, *args, **how):
        lane = self.stream.open(4096)
        lane.command().start.CopyFrom(request(pb.GenerationStart, *args, **how))
        return lane

    async def prefill(self, *args, **how):
        return await self.stub.Prefill(request(pb.PrefillRequest, *args, **how))


@pytest.fixture
async def start_client(start_rig):
    opened = []

    async def start(**settings):
        rig = await start_rig(**settings)
        replica = rig.replica
        servicer = AttentionServicer(
            replica.engine, replica.constraints, replica.limits, settings.get("role", "decode"), None
        )
        server, address = await start_server(
            lambda server: add_AttentionServiceServicer_to_server(servicer, server), "127.0.0.1:0"
        )
        channel = open_channel(address)
        client = Client(rig, servicer, AttentionServiceStub(channel))
        opened.append((client, channel, server))
        return client

    yield start
    for client, channel, server in opened:
        client.stream.end(Unavailable("the test is over"))
        await channel.close()
        await server.stop(None)


async def test_a_stream_ends_at_its_length_or_a_stop_token(start_client, reference):
    client = await start_client()
    expected = reference.generate(prompt(30), 8)
    responses = await client.decode(30, 8)
    assert [token for each in responses for token in each.token_ids] == expected
    assert [each.finish_reason for each in responses] == [pb.FINISH_REASON_UNSPECIFIED] * 7 + [pb.LENGTH]
    assert responses[0].HasField("times") and not any(each.HasField("times") for each in responses[1:])
    stopped = await client.decode(30, 8, sampling={"stop_token_ids": [expected[3]]})
    assert [token for each in stopped for token in each.token_ids] == expected[: expected.index(expected[3]) + 1]
    assert stopped[-1].finish_reason == pb.STOP


async def test_logprobs_are_those_of_the_chosen_token(start_client):
    client = await start_client()
    for each in await client.decode(30, 4, sampling={"num_top_logprobs": 3}):
        (logprobs,) = each.logprobs
        assert logprobs.top_token_ids[0] == each.token_ids[0]
        assert logprobs.logprob == logprobs.top_logprobs[0] > logprobs.top_logprobs[2]
    assert not (await client.decode(30, 1))[0].logprobs


async def test_a_prefill_says_where_to_go_on(start_client, reference, store):
    client = await start_client(role="prefill", store=store)
    response = await client.prefill(40, 8)
    assert response.token_id == reference.generate(prompt(40), 1)[0]
    manifest = response.manifest
    assert (len(manifest.block_hashes), len(manifest.tail_name), manifest.num_tokens) == (2, 32, 40)
    assert manifest.fingerprint == client.rig.replica.limits.names_root
    assert not manifest.offer and response.times.publish_s >= 0
    last = await client.prefill(40, 1)
    assert last.finish_reason == pb.LENGTH


async def test_blocks_stay_after_the_answer_until_they_are_released(start_client):
    client = await start_client(role="prefill", handoff_hold_s=60.0)
    response = await client.prefill(40, 8)
    await asyncio.sleep(0.1)
    assert len(response.manifest.offer) == 32
    assert client.rig.engine.load.num_running == 1
    client.rig.engine.release(response.manifest.offer)
    await client.rig.idle(2.0)


async def test_a_bad_request_names_its_field(start_client):
    client = await start_client()
    with pytest.raises(InvalidRequest) as refused:
        await client.decode(30, 0)
    assert refused.value.field == "max_new_tokens"


async def test_a_caller_that_leaves_frees_its_blocks(start_client):
    client = await start_client()
    lane = client.start(30, 900)
    await lane.receive(10)
    lane.close(is_over=False)
    await client.rig.idle(5.0)
    client.start(30, 900)
    await client.start(30, 900).receive(10)
    client.stream.end(Unavailable("the caller is gone"))
    await client.rig.idle(5.0)


async def test_the_load_shows_what_is_there(start_client):
    client = await start_client()
    lane = client.start(33, 900)
    await lane.receive(10)
    load = await client.stub.GetLoad(pb.GetLoadRequest())
    assert (load.role, load.num_running, load.num_waiting, load.max_waiting) == ("decode", 1, 0, 256)
    assert (load.num_blocks, load.block_tokens, load.context_tokens) == (64, 16, 1024)
    assert load.num_free_blocks < 64
    lane.close(is_over=False)


async def test_draining_gives_streams_back_and_finishes_prompts(start_client):
    client = await start_client(role="prefill")
    lane = client.start(30, 900)
    await lane.receive(10)
    prompt_call = asyncio.create_task(client.prefill(600, 1))
    await asyncio.sleep(0.05)
    await asyncio.wait_for(client.servicer.drain(), 20)
    assert (await prompt_call).finish_reason == pb.LENGTH
    with pytest.raises(Unavailable):
        async for _ in parts_of(lane):
            pass
    client.stream.end(Unavailable("its generations are over"))
    client.stream = client.new_stream()
    with pytest.raises(Unavailable, match="shutting down"):
        await client.decode(5, 5)


async def test_a_constraint_that_only_bans_calls_costs_no_grammar(start_client):
    client = await start_client()
    constrained = await client.decode(30, 12, sampling={"constraint": pb.Constraint()})
    banned = client.rig.replica.constraints.call_markers
    assert banned and not {token for each in constrained for token in each.token_ids} & set(banned)


async def test_an_answer_keeps_its_form(start_client, tiny_checkpoint):
    client = await start_client()
    table = load_tokens(tiny_checkpoint, client.rig.replica.limits.vocab_size)
    stops = [table.special_ids[marker.value] for marker in STOPS]
    how = {"constraint": pb.Constraint(json_schema='{"enum": ["red"]}'), "stop_token_ids": stops}
    responses = await client.decode(30, 200, sampling=how)
    assert responses[-1].finish_reason == pb.STOP
    tokens = [token for each in responses for token in each.token_ids]
    assert b"".join(table.ordinary[token] for token in tokens[:-1]) == b'"red"'


async def test_generations_share_a_stream_and_each_has_its_own_end(start_client, reference):
    client = await start_client()
    expected = reference.generate(prompt(30), 8)
    bad, late = client.start(30, 0), client.start(30, 900)
    good = [client.start(30, 8) for _ in range(3)]
    for lane in good:
        parts = [part async for part in parts_of(lane)]
        assert [token for part in parts for token in part.token_ids] == expected
    with pytest.raises(InvalidRequest) as refused:
        await bad.receive(10)
    assert refused.value.field == "max_new_tokens"
    assert (await late.receive(10))[0].token_ids == expected[:1]
    late.close(is_over=False)
    await client.rig.idle(5.0)
    assert client.stream.takes_lanes


async def test_the_deadline_of_a_generation_ends_it(start_client):
    client = await start_client()
    lane = client.start(30, 900, call=LaneCall(timeout_s=0.2))
    with pytest.raises(DeadlineExceeded):
        async for _ in parts_of(lane):
            pass
    await client.rig.idle(5.0)


async def test_a_lane_has_one_start(start_client):
    client = await start_client()
    lane = client.start(30, 900)
    await lane.receive(10)
    lane.command().start.CopyFrom(request(pb.GenerationStart, 30, 900))
    with pytest.raises(InvalidRequest):
        async for _ in parts_of(lane):
            pass
    await client.rig.idle(5.0)


async def test_the_tokens_of_a_step_come_in_one_message(start_client):
    client = await start_client()
    starts = [pb.GenerationCommand(lane=lane, start=request(pb.GenerationStart, 30, 60)) for lane in range(8)]
    call = client.stub.Generate()
    await call.write(pb.GenerateRequest(parts=starts))
    sizes = [len(message.parts) for message in [await call.read() for _ in range(40)]]
    call.cancel()
    assert sizes.count(8) > 20, sizes
