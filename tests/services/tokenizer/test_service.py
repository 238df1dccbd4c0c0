"""The service over real gRPC, and the process."""

import asyncio
import os
import signal
import sys
import threading
import time

import pytest

from protos import tokenizer_pb2 as pb
from protos.tokenizer_pb2_grpc import TokenizerServiceStub, add_TokenizerServiceServicer_to_server
from services.runtime.channels import open_channel, wait_ready
from services.runtime.errors import InvalidRequest, Overloaded, RequestTooLarge, Unavailable
from services.runtime.lanes import LaneStream
from services.runtime.server import start_server
from services.tokenizer.long_work import SHORT_BYTES, LongWork
from services.tokenizer.metrics import CALLS_DROPPED, TOKENS
from services.tokenizer.service import TokenizerServicer
from tests.services.tokenizer.answers import Answer
from tests.services.tokenizer.conversations import request_from_json

TOOL = pb.DeclaredTool(name="f", properties=["a"])
MAX_REQUEST_BYTES = 1_000_000
MAX_REMEMBERED_BYTES = 1 << 20


@pytest.fixture
def work():
    work = LongWork(threads=1, max_waiting=4, max_waiting_bytes=1 << 24)
    yield work
    work.close()


@pytest.fixture
def servicer(tiny, work):
    return TokenizerServicer(tiny, work, MAX_REQUEST_BYTES, MAX_REMEMBERED_BYTES)


@pytest.fixture
async def stub(servicer):
    server, address = await start_server(lambda server: add_TokenizerServiceServicer_to_server(servicer, server))
    async with open_channel(address) as channel:
        yield TokenizerServiceStub(channel)
    await server.stop(None)


def tokens(*token_ids) -> pb.AnswerCommand:
    return pb.AnswerCommand(token_ids=token_ids)


def start(**options) -> pb.AnswerCommand:
    return pb.AnswerCommand(start=pb.ParseStart(**{"state": pb.REASONING, "tools": [TOOL]} | options))


def end(*, truncated=False) -> pb.AnswerCommand:
    return pb.AnswerCommand(end=pb.ParseEnd(truncated=truncated))


@pytest.fixture
async def answers(stub):
    """A stream of answers."""
    stream = LaneStream(stub.ParseAnswers(), pb.ParseAnswersRequest, "the tokenizer")
    yield stream
    stream.end(Unavailable("the test is over"))


async def exchange(lane, command) -> pb.AnswerParts:
    lane.command().MergeFrom(command)
    (answer,) = await lane.receive(10)
    answer.ClearField("lane")
    return answer


async def test_describe(stub, tiny):
    described = await stub.Describe(pb.DescribeRequest())
    assert (described.vocab_size, described.context_tokens) == (512, 4096)
    assert list(described.stop_token_ids) == [257, 258, 265]
    assert described.special_tokens["<|im_end|>"] == 258
    assert described.revision == tiny.revision


async def test_a_conversation_there_and_back(stub, answers, tiny):
    rendered = await stub.Render(request_from_json([{"role": "user", "content": "Hi"}], thinking=True))
    prompt = await stub.Detokenize(pb.DetokenizeRequest(token_ids=rendered.token_ids))
    assert prompt.text == "<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>assistant<|im_middle|><think>"
    assert b"".join(prompt.token_bytes).decode() == prompt.text
    text = " hm</think>中<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}"
    encoded = await stub.Encode(pb.EncodeRequest(text=text, allow_special=True))
    call = answers.open(1)
    answer = Answer()
    assert await exchange(call, start(state=rendered.parser_state)) == pb.AnswerParts()
    for token_id in encoded.token_ids:
        answer.add((await exchange(call, tokens(token_id))).deltas)
    last = await exchange(call, end())
    answer.add(last.deltas)
    assert (answer.reasoning, answer.content, answer.calls[0].arguments) == (" hm", "中", "{}")
    assert (last.num_reasoning_tokens, last.num_complete_calls, last.HasField("stop")) == (3, 1, False)


async def test_untrusted_text_has_no_special_tokens(stub):
    encoded = await stub.Encode(pb.EncodeRequest(text="<|im_end|>"))
    assert max(encoded.token_ids) < 256
    skipped = await stub.Detokenize(pb.DetokenizeRequest(token_ids=[64, 258, 65], skip_special=True))
    assert list(skipped.token_bytes) == [b"a", b"", b"b"]


async def test_the_stop_string_is_reported(answers, tiny):
    call = answers.open(1)
    await exchange(call, start(state=pb.CONTENT, stop=["ST"]))
    response = await exchange(call, tokens(*tiny.encode("a STOP")))
    assert response.stop == "ST"
    assert response.deltas[0].content == "a "
    assert (await exchange(call, end())).stop == "ST"


@pytest.mark.parametrize(
    "method, request_, field",
    [
        pytest.param("Render", request_from_json([{"role": "tool"}]), "messages[0].tool_call_id", id="render"),
        pytest.param("Render", pb.RenderRequest(tools_json="{"), "tools", id="tools"),
        pytest.param("Render", pb.RenderRequest(tools_json="x" * MAX_REQUEST_BYTES), "messages", id="render-too-large"),
        pytest.param("Encode", pb.EncodeRequest(text="x" * MAX_REQUEST_BYTES), "text", id="encode-too-large"),
        pytest.param("Detokenize", pb.DetokenizeRequest(token_ids=[512]), "token_ids", id="unknown-token"),
        pytest.param("Detokenize", pb.DetokenizeRequest(token_ids=[0] * 10**6), "token_ids", id="ids-too-large"),
    ],
)
async def test_bad_calls_name_the_field(stub, method, request_, field):
    with pytest.raises(InvalidRequest) as caught:
        await getattr(stub, method)(request_)
    assert caught.value.field == field


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


async def test_long_texts_do_not_keep_others_waiting(stub, answers, tiny, work):
    text = "ab " * SHORT_BYTES
    go_on = threading.Event()
    busy = asyncio.ensure_future(work.run(SHORT_BYTES + 1, go_on.wait))
    long = [
        asyncio.ensure_future(_result(stub.Render(request_from_json([{"role": "user", "content": text}])))),
        asyncio.ensure_future(_result(stub.Encode(pb.EncodeRequest(text=text)))),
    ]
    call = answers.open(1)
    await exchange(call, start(state=pb.CONTENT))
    for _ in range(3):
        assert (await exchange(call, tokens(64))).deltas[0].content == "a"
    assert (await stub.Render(request_from_json([{"role": "user", "content": "short"}]))).token_ids
    assert not any(done.done() for done in long)
    go_on.set()
    rendered, encoded = await asyncio.gather(*long)
    assert tiny.decode(encoded.token_ids) == text
    assert text in tiny.decode(rendered.token_ids)
    assert await busy


async def _result(call):
    return await call


async def test_too_much_long_work_is_refused():
    work = LongWork(threads=1, max_waiting=2, max_waiting_bytes=1 << 24)
    go_on = threading.Event()
    running = [asyncio.ensure_future(work.run(SHORT_BYTES + 1, go_on.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await work.run(SHORT_BYTES + 1, go_on.wait)
    assert caught.value.retry_after_s == 1
    assert await work.run(SHORT_BYTES, lambda: "short work goes on") == "short work goes on"
    # A caller that leaves frees no place that is still in use.
    running[0].cancel()
    with pytest.raises(Overloaded):
        await work.run(SHORT_BYTES + 1, go_on.wait)
    go_on.set()
    assert await running[1] is True
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert await work.run(SHORT_BYTES + 1, lambda: 7) == 7
            break
        except Overloaded:
            await asyncio.sleep(0.01)
    else:
        pytest.fail("the places were not given back")
    work.close()


async def test_the_bytes_of_long_work_are_bounded():
    work = LongWork(threads=1, max_waiting=9, max_waiting_bytes=3 * SHORT_BYTES)
    go_on = threading.Event()
    running = asyncio.ensure_future(work.run(2 * SHORT_BYTES, go_on.wait))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=f"1 long texts of {2 * SHORT_BYTES} bytes"):
        await work.run(2 * SHORT_BYTES, go_on.wait)
    go_on.set()
    assert await running
    # One piece alone may be larger than all together.
    assert await work.run(9 * SHORT_BYTES, lambda: 7) == 7
    work.close()


def tiny_messages(count, *, calls=0, parts=0):
    return pb.RenderRequest(
        messages=[
            pb.ChatMessage(
                role="assistant",
                content=[pb.ContentPart(text="")] * parts,
                tool_calls=[pb.ToolCall(id="x", name="f")] * calls,
            )
        ]
        * count
    )


@pytest.mark.parametrize(
    "request_, message",
    [
        pytest.param(tiny_messages(135_000), "135000 messages take at least 540000 tokens", id="messages"),
        pytest.param(
            tiny_messages(100, calls=1000),
            "100 messages with 100000 tool calls take at least",
            id="calls",
        ),
        pytest.param(tiny_messages(100, parts=2000), "200000 content parts, at most 4096", id="parts"),
    ],
)
async def test_a_conversation_that_cannot_fit_is_refused_at_once(tiny, request_, message):
    work = LongWork(threads=1, max_waiting=4, max_waiting_bytes=1 << 24)
    servicer = TokenizerServicer(tiny, work, 1 << 24, 0)
    started = time.perf_counter()
    with pytest.raises(RequestTooLarge, match=message) as caught:
        await servicer.Render(request_, None)
    assert time.perf_counter() - started < 0.5
    assert caught.value.field == "messages"
    work.close()


def environment(tmp_path, model) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MOONSHARD_")}
    return kept | {"MOONSHARD_LISTEN": f"unix:{tmp_path}/tokenizer.sock", "MOONSHARD_MODEL": str(model)}


async def test_the_process_serves_until_it_is_told_to_stop(tiny_folder, tmp_path):
    env = environment(tmp_path, tiny_folder)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.tokenizer", env=env)
    try:
        async with open_channel(env["MOONSHARD_LISTEN"]) as channel:
            await wait_ready(channel, 60)
            described = await TokenizerServiceStub(channel).Describe(pb.DescribeRequest())
            assert described.vocab_size == 512
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_bad_checkpoint_stops_the_process(tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.tokenizer"),
        env=environment(tmp_path, tmp_path / "nowhere"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert b"nowhere: expected a readable file, found: No such file" in errors
    assert b"Traceback" not in errors
