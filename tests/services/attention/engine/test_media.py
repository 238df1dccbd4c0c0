"""Features in the engine: where they go in a step, where they come from, and what is refused."""

import asyncio
import json

import pytest
import torch

from protos import attention_pb2 as pb
from protos.media_pb2 import MediaRef, MediaSpan
from services.attention.engine.generation import Generation
from services.attention.engine.media import MediaSource, marks_to_compute, media_rows
from services.attention.engine.turns import Chunk
from services.attention.requests import generation_from_proto
from services.attention.sampling.on_host import SamplingParams
from services.checkpoint.block_names import BlockNames, MediaMark
from services.checkpoint.media_names import media_key, model_name
from services.model.checkpoint import Checkpoint
from services.model.media_features import features_from_bytes, features_to_bytes
from services.runtime.errors import InvalidRequest, MediaMissing, StoreUnavailable
from tests.services.attention.conftest import Request

WIDTH = 4


def mark(offset, num_tokens, name=b"a"):
    return MediaMark(offset, num_tokens, name * 32)


def generation(marks, num_computed=0, num_tokens=40):
    made = Generation(
        request_id="",
        token_ids=[0] * num_tokens,
        num_prompt=num_tokens,
        sampling=SamplingParams(temperature=0.0),
        max_tokens=100,
        names=BlockNames(b"root", 16, media=marks),
        sink=lambda event: None,
    )
    made.num_computed = num_computed
    # Row i of the features at offset o is 100 o + i.
    made.features = {m.offset: torch.arange(m.num_tokens).unsqueeze(1) + 100.0 * m.offset for m in marks}
    return made


@pytest.mark.parametrize(
    "chunks, places, rows",
    [
        pytest.param([(0, 10, [(3, 4)])], [3, 4, 5, 6], [300, 301, 302, 303], id="inside-a-chunk"),
        pytest.param([(0, 5, [(3, 4)])], [3, 4], [300, 301], id="begins-in-it"),
        pytest.param([(5, 5, [(3, 4)])], [0, 1], [302, 303], id="ends-in-it"),
        pytest.param([(4, 2, [(3, 4)])], [0, 1], [301, 302], id="goes-through-it"),
        pytest.param([(4, 1, [(3, 4)])], [0], [301], id="one-token"),
        pytest.param([(0, 3, [(3, 4)])], None, None, id="behind-it"),
        pytest.param([(7, 9, [(3, 4)])], None, None, id="before-it"),
        pytest.param([(0, 9, [(1, 2), (3, 1), (8, 5)])], [1, 2, 3, 8], [100, 101, 300, 800], id="several"),
        pytest.param([(2, 6, []), (0, 4, [(2, 9)])], [6 + 2, 6 + 3], [200, 201], id="of-the-second-row"),
    ],
)
def test_where_features_go(chunks, places, rows):
    plan, starts, start = [], [], 0
    for num_computed, num_tokens, spans in chunks:
        plan.append(Chunk(generation([mark(*span) for span in spans], num_computed), num_tokens))
        starts.append(start)
        start += num_tokens
    found = media_rows(plan, torch.tensor(starts))
    if places is None:
        assert found is None
    else:
        assert found[0].tolist() == places
        assert found[1].flatten().tolist() == rows


def test_only_media_that_are_not_computed_are_needed():
    marks = [mark(0, 4), mark(10, 6), mark(20, 2)]
    assert marks_to_compute(marks, 0) == marks
    assert marks_to_compute(marks, 4) == marks[1:]
    assert marks_to_compute(marks, 15) == marks[1:]
    assert marks_to_compute(marks, 22) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_features(dtype):
    features = torch.randn(3, WIDTH).to(dtype)
    data = bytearray(features_to_bytes(features))
    assert torch.equal(features_from_bytes(data, 3, WIDTH), features)
    assert features_from_bytes(data[:-1], 3, WIDTH) is None
    assert features_from_bytes(data, 2, WIDTH) is None
    assert features_from_bytes(bytearray(), 3, WIDTH) is None


async def test_features_are_fetched_once_each_and_missed_with_their_name(blobs):
    source = MediaSource(blobs, "model", WIDTH, asyncio.get_running_loop())
    features = torch.randn(5, WIDTH)
    await blobs.put({media_key("model", b"a" * 32): features_to_bytes(features)})
    found = await source.fetch([mark(3, 5), mark(20, 5)])
    assert sorted(found) == [3, 20] and all(torch.equal(each, features) for each in found.values())
    assert await source.fetch([]) == {}
    with pytest.raises(MediaMissing, match=b"b".hex() * 32):
        await source.fetch([mark(3, 5), mark(20, 5, b"b")])


async def test_a_store_that_restarts_is_waited_for(redis, blobs):
    source = MediaSource(blobs, "model", WIDTH, asyncio.get_running_loop(), wait_s=20.0)
    redis.stop()
    reading = asyncio.create_task(source.fetch([mark(3, 5)]))
    await asyncio.sleep(0.3)
    assert not reading.done()
    await asyncio.to_thread(redis.start)
    # The store is empty now, which only one that answers can say.
    with pytest.raises(MediaMissing):
        await reading
    redis.stop()
    with pytest.raises(StoreUnavailable):
        await MediaSource(blobs, "model", WIDTH, asyncio.get_running_loop(), wait_s=0.1).fetch([mark(3, 5)])


async def test_features_of_another_size_are_removed(blobs):
    source = MediaSource(blobs, "model", WIDTH, asyncio.get_running_loop())
    key = media_key("model", b"a" * 32)
    await blobs.put({key: features_to_bytes(torch.randn(5, WIDTH))})
    with pytest.raises(MediaMissing):
        await source.fetch([mark(3, 4)])
    assert await blobs.exists([key]) == [False]


def submit(rig, token_ids, num_tokens, spans):
    """As the service does it; InvalidRequest if the request is refused."""
    request = Request(None, asyncio.Queue())
    prompt = pb.Prompt(token_ids=token_ids, num_prompt_tokens=len(token_ids), media=spans)
    sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=num_tokens)
    loop = asyncio.get_running_loop()
    request.generation = generation_from_proto(
        pb.GenerationStart(prompt=prompt, sampling=sampling),
        rig.replica.limits,
        request_id="test",
        hand_over=False,
        sink=lambda event: loop.call_soon_threadsafe(request.events.put_nowait, event),
    )
    rig.engine.submit(request.generation)
    return request


async def test_an_image_in_one_replica(start_rig, reference, blobs, redis, tiny_checkpoint):
    """Features of 40 tokens over chunks of 32 and blocks of 16, put there by hand."""
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    pad, width = config["media_placeholder_token_id"], config["text_config"]["hidden_size"]
    rig = await start_rig(store=redis.url)
    features = torch.randn(40, width, generator=torch.Generator().manual_seed(3))
    await blobs.put(
        {media_key(model_name(Checkpoint(tiny_checkpoint).digest()), b"x" * 32): features_to_bytes(features)}
    )
    token_ids = [*range(7), *[pad] * 40, *range(50, 61)]
    spans = [MediaSpan(offset=7, media=MediaRef(digest=b"x" * 32, num_tokens=40))]
    expected = reference.generate(token_ids, 8, media=[(7, features)])
    assert expected != reference.generate(token_ids, 8)
    request = submit(rig, token_ids, 8, spans)
    assert await request.tokens() == expected
    assert request.generation.features == {}


@pytest.mark.parametrize(
    "spans, reason",
    [
        pytest.param([(0, 2, 32)], "placeholders", id="other-tokens"),
        pytest.param([(2, 0, 32)], "do not fit", id="no-tokens"),
        pytest.param([(2, 99, 32)], "do not fit", id="past-the-prompt"),
        pytest.param([(2, 2, 32), (2, 2, 32)], "do not fit", id="twice"),
        pytest.param([(2, 2, 5)], "32 bytes", id="digest"),
        pytest.param([(2, 2, 32)], "no medium covers", id="not-all"),
        pytest.param([], "no medium covers", id="none"),
    ],
)
async def test_spans_that_make_no_sense_are_refused(start_rig, redis, tiny_checkpoint, spans, reason):
    pad = json.loads((tiny_checkpoint / "config.json").read_text())["media_placeholder_token_id"]
    rig = await start_rig(store=redis.url)
    media = [MediaSpan(offset=o, media=MediaRef(digest=b"x" * size, num_tokens=n)) for o, n, size in spans]
    with pytest.raises(InvalidRequest, match=reason) as error:
        submit(rig, [5, 5, pad, pad, 5, pad], 8, media)
    assert error.value.field.startswith("prompt.media")


async def test_without_a_store_media_are_refused(start_rig):
    rig = await start_rig()
    with pytest.raises(InvalidRequest, match="no store"):
        submit(rig, [1, 2], 8, [MediaSpan(offset=0, media=MediaRef(digest=b"x" * 32, num_tokens=1))])
