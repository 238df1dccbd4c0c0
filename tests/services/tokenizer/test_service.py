"""The service over real gRPC, and the process."""

import asyncio
import os
import signal
import sys
import threading
import time

import pytest

from protos import tokenizer_pb2 as pb
from protos.tokenizer_pb2_grpc import TokenizerServiceStub
from services.runtime.channels import open_channel, wait_ready
from services.runtime.errors import InvalidRequest, Overloaded, RequestTooLarge
from services.tokenizer.long_work import SHORT_BYTES, LongWork
from services.tokenizer.service import TokenizerServicer
from tests.services.tokenizer.answers import Answer
from tests.services.tokenizer.commands import end, exchange, start, tokens
from tests.services.tokenizer.conftest import MAX_REQUEST_BYTES
from tests.services.tokenizer.conversations import request_from_json


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
