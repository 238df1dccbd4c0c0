"""Many answers parsed in one stream."""

import asyncio

import pytest

from protos import tokenizer_pb2 as pb
from services.runtime.errors import InvalidRequest, Unavailable
from services.tokenizer.metrics import CALLS_DROPPED, TOKENS
from tests.services.tokenizer.commands import end, exchange, start, tokens
from tests.services.tokenizer.conftest import MAX_REQUEST_BYTES


async def test_the_stop_string_is_reported(answers, tiny):
    call = answers.open(1)
    await exchange(call, start(state=pb.CONTENT, stop=["ST"]))
    response = await exchange(call, tokens(*tiny.encode("a STOP")))
    assert response.stop == "ST"
    assert response.deltas[0].content == "a "
    assert (await exchange(call, end())).stop == "ST"


@pytest.mark.parametrize(
    "requests, field",
    [
        pytest.param([tokens(1)], "start", id="no-start"),
        pytest.param([end()], "start", id="end-first"),
        pytest.param([start(), start()], "start", id="two-starts"),
        pytest.param([pb.AnswerCommand()], "start", id="nothing"),
        pytest.param([start(), tokens(*[1] * MAX_REQUEST_BYTES)], "token_ids", id="too-large"),
        pytest.param([start(state=pb.PARSER_STATE_UNSPECIFIED)], "state", id="no-state"),
        pytest.param([start(stop=[""])], "stop[0]", id="empty-stop"),
        pytest.param([start(), tokens(512)], "token_ids", id="unknown-token"),
    ],
)
async def test_bad_answers_name_the_field_and_leave_the_others_alone(answers, requests, field):
    call, other = answers.open(1), answers.open(1)
    await exchange(other, start(state=pb.CONTENT))
    with pytest.raises(InvalidRequest) as caught:
        for request in requests:
            await exchange(call, request)
    assert caught.value.field == field
    assert (await exchange(other, tokens(64))).deltas[0].content == "a"


async def test_a_start_tokens_and_an_end_may_come_together(answers, tiny):
    command = start(state=pb.CONTENT, name_content=True)
    command.token_ids.extend(tiny.encode("Hi"))
    command.end.SetInParent()
    answer = await exchange(answers.open(1), command)
    assert [delta.content for delta in answer.deltas] == ["Hi"]
    assert answer.content_positions == [0, 1]


async def test_what_lanes_send_in_one_turn_is_one_message(answers, tiny, monkeypatch):
    lanes = [answers.open(1) for _ in range(20)]
    sizes = []
    write = answers._call.write
    monkeypatch.setattr(answers._call, "write", lambda request: sizes.append(len(request.parts)) or write(request))
    for number in range(3):
        for lane in lanes:
            lane.command().MergeFrom(tokens(64 + number) if number else start(state=pb.CONTENT))
        await asyncio.gather(*(lane.receive(10) for lane in lanes))
    assert sizes == [20, 20, 20]


async def test_a_drain_ends_the_stream_behind_its_last_answer(answers, servicer):
    lane = answers.open(1)
    await exchange(lane, start(state=pb.CONTENT))
    await servicer.drain()
    late = answers.open(1)
    late.command().MergeFrom(start())
    with pytest.raises(Unavailable, match="shutting down"):
        await late.receive(10)
    assert (await exchange(lane, tokens(64))).deltas[0].content == "a"
    await exchange(lane, end())
    with pytest.raises(Unavailable, match="ended the stream"):
        await lane.receive(10)
    assert not answers.takes_lanes


async def test_what_is_repaired_and_dropped_is_counted(answers, tiny):
    def values():
        return [c._value.get() for c in (CALLS_DROPPED.labels("unknown"), TOKENS.labels("answers"))]

    before = values()
    call = answers.open(1)
    await exchange(call, start())
    token_ids = tiny.encode_with_special("<|tool_call_begin|>nobody:0<|tool_call_argument_begin|>{}<|tool_call_end|>")
    await exchange(call, tokens(*token_ids))
    assert [now - then for then, now in zip(before, values(), strict=True)] == [1, len(token_ids)]
