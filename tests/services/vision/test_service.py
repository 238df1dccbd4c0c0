"""VisionService over gRPC with a real store: answers, stored values, and work that is shared."""

import asyncio
import os
import signal
import sys

import psutil
import pytest
import torch
from PIL import Image
from prometheus_client import REGISTRY

from protos.media_pb2 import MediaRef
from services.checkpoint.media_names import media_key, model_name
from services.local.random_checkpoint.dims import RandomDims, tiny_dims
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model.checkpoint import Checkpoint
from services.model.media_features import features_from_bytes
from services.model.tensor_names import vision_specs
from services.runtime.channels import open_channel, wait_ready
from services.runtime.errors import CheckpointError, InvalidRequest, Overloaded, StoreUnavailable
from services.vision.batching import Item, take_batch
from services.vision.decoder_process import answer
from services.vision.model import Grid, VisionModel
from services.vision.preprocess import patchify, value_table
from services.vision.weights import load_vision
from tests.services.vision.conftest import Vision
from tests.services.vision.hostile import picture, png, saved, video

WIDTH = 128
GROWTH_BYTES = 700 << 20


def count(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    config, weights = load_vision(Checkpoint(tiny_checkpoint), torch.float32)
    return VisionModel(config, weights)


def expected_features(model, pixels):
    frames, height, width, _ = pixels.shape
    patches = torch.from_numpy(value_table())[torch.from_numpy(patchify(pixels, 14)).int()]
    return model.encode(patches, [Grid(frames, height // 14, width // 14)])[0]


async def stored_features(vision, tiny_checkpoint, ref):
    key = media_key(model_name(Checkpoint(tiny_checkpoint).digest()), ref.digest)
    (data,) = await vision.store.get([key])
    return features_from_bytes(data, ref.num_tokens, WIDTH)


async def test_features_of_an_image_are_in_the_store(start_vision, tiny_checkpoint, model):
    vision = await start_vision()
    data = saved(picture(90, 50), "PNG")
    response = await vision.encode(data)
    ref = response.media
    assert (ref.grid_t, ref.grid_h, ref.grid_w, ref.num_tokens) == (1, 4, 8, 8)
    assert not response.cached and not ref.chunks and len(ref.digest) == 32
    (_, _), (_, pixels) = answer("image", data, vision.replica.decoders._decoders[0]._options)
    features = await stored_features(vision, tiny_checkpoint, ref)
    assert torch.equal(features, expected_features(model, pixels))


async def test_features_of_a_video_are_in_the_store(start_vision, tiny_checkpoint, model):
    vision = await start_vision()
    data = video(12, fps=4, size=(80, 50))
    ref = (await vision.encode(data, "video")).media
    assert [chunk.prompt_text for chunk in ref.chunks] == ["00:00:00.000", "00:00:02.250"]
    assert [chunk.media.grid_t for chunk in ref.chunks] == [4, 2]
    assert ref.num_tokens == sum(chunk.media.num_tokens for chunk in ref.chunks) == 12
    _, *pieces = answer("video", data, vision.replica.decoders._decoders[0]._options)
    for chunk, (_, pixels) in zip(ref.chunks, pieces, strict=True):
        features = await stored_features(vision, tiny_checkpoint, chunk.media)
        assert torch.allclose(features, expected_features(model, pixels), atol=1e-5)


async def test_a_file_seen_before_is_not_decoded_again(start_vision):
    first, second = await start_vision(), await start_vision()
    data = saved(picture(70, 50), "JPEG")
    computed = await first.encode(data)
    await first.replica.decoders.close()
    decoded = count("moonshard_vision_decode_seconds_count", kind="image")
    again, elsewhere = await first.encode(data), await second.encode(data)
    assert again.cached and elsewhere.cached
    assert again.media == elsewhere.media == computed.media
    assert count("moonshard_vision_decode_seconds_count", kind="image") == decoded


async def test_the_same_pixels_in_another_file_are_not_computed_again(start_vision):
    vision = await start_vision()
    image = picture(70, 50)
    one = await vision.encode(saved(image, "PNG"))
    computed = count("moonshard_vision_chunks_total", source="computed")
    other = await vision.encode(saved(image, "BMP"))
    assert other.media.digest == one.media.digest and not other.cached
    assert count("moonshard_vision_chunks_total", source="computed") == computed
    assert (await vision.encode(saved(picture(70, 51), "PNG"))).media.digest != one.media.digest


async def test_dtype_is_part_of_the_name(start_vision, tiny_checkpoint):
    exact, rounded = await start_vision(), await start_vision(dtype="bfloat16")
    data = saved(picture(60, 60), "PNG")
    a, b = (await exact.encode(data)).media, (await rounded.encode(data)).media
    assert a.digest != b.digest
    wide, narrow = await stored_features(exact, tiny_checkpoint, a), await stored_features(rounded, tiny_checkpoint, b)
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert (wide - narrow.float()).norm() / wide.norm() < 3e-2


async def test_features_that_left_the_store_are_computed_again(start_vision, tiny_checkpoint):
    vision = await start_vision()
    data = saved(picture(50, 90), "PNG")
    ref = (await vision.encode(data)).media
    await vision.store.delete([media_key(model_name(Checkpoint(tiny_checkpoint).digest()), ref.digest)])
    again = await vision.encode(data)
    assert not again.cached and again.media == ref
    assert await stored_features(vision, tiny_checkpoint, ref) is not None


async def test_concurrent_requests_for_one_picture_compute_it_once(start_vision):
    vision = await start_vision()
    data = saved(picture(300, 200), "PNG")
    before = count("moonshard_vision_chunks_total", source="computed")
    responses = await asyncio.gather(*(vision.encode(data) for _ in range(8)))
    assert len({response.media.digest for response in responses}) == 1
    assert count("moonshard_vision_chunks_total", source="computed") == before + 1


async def test_a_caller_that_leaves_takes_nothing_from_the_others(start_vision):
    vision = await start_vision()
    data = saved(picture(301, 200), "PNG")
    leaving = asyncio.create_task(vision.encode(data))
    staying = asyncio.create_task(vision.encode(data))
    await asyncio.sleep(0.02)
    leaving.cancel()
    assert (await staying).media.num_tokens == 88


async def test_different_pictures_at_once_are_as_alone(start_vision, tiny_checkpoint, model):
    vision = await start_vision(decoders=2)
    files = [saved(picture(30 + 20 * n, 200 - 15 * n), "PNG") for n in range(8)]
    responses = await asyncio.gather(*(vision.encode(data) for data in files))
    for data, response in zip(files, responses, strict=True):
        (_, _), (_, pixels) = answer("image", data, vision.replica.decoders._decoders[0]._options)
        features = await stored_features(vision, tiny_checkpoint, response.media)
        assert torch.allclose(features, expected_features(model, pixels), atol=1e-5)


@pytest.mark.parametrize(
    "frames, patches, batch, left",
    [
        pytest.param([1, 1, 1], 10, [0, 1, 2], [], id="all-that-fit"),
        pytest.param([1, 1, 1], 8, [0, 1], [2], id="as-many-as-fit"),
        pytest.param([4, 1, 4], 100, [0, 2], [1], id="equal-frames-only"),
        pytest.param([4, 1], 3, [0], [1], id="one-that-is-too-large-goes-alone"),
        pytest.param([], 3, [], [], id="idle"),
    ],
)
def test_what_is_batched(frames, patches, batch, left):
    items = [Item(None, Grid(count, 1, 4 if count == 1 else 1), None) for count in frames]
    if patches == 10:
        patches = 12
    taken, waiting = take_batch(items, patches)
    assert taken == [items[index] for index in batch]
    assert waiting == [items[index] for index in left]


@pytest.mark.parametrize(
    "how, reason, field",
    [
        pytest.param({"data": b""}, "the file is empty", "media", id="empty"),
        pytest.param({"data": b"abc"}, "is not an image in PNG", "media", id="no-image"),
        pytest.param({"data": b"abc", "kind": "video"}, "cannot be opened as a video", "media", id="no-video"),
        pytest.param({"data": b"abc", "kind": "sound"}, "a start with a kind", "start.kind", id="kind"),
        pytest.param({"data": b"abc", "num_bytes": 4}, "3 of 4 bytes", "start.num_bytes", id="too-short"),
        pytest.param({"data": b"abc", "num_bytes": 2}, "more than the 2", "start.num_bytes", id="too-long"),
        pytest.param({"data": b"", "num_bytes": 2**40}, "max_image_bytes", "media", id="too-large"),
    ],
)
async def test_refusals(start_vision, how, reason, field):
    vision = await start_vision()
    with pytest.raises(InvalidRequest, match=reason) as caught:
        await vision.encode(**how)
    assert caught.value.field == field
    assert vision.replica.servicer._upload_bytes == 0


async def test_bytes_in_work_are_bounded(start_vision):
    vision = await start_vision(max_upload_bytes=20_000)
    files = [saved(Image.effect_noise((100 + n, 100), 90), "PNG") for n in range(6)]
    outcomes = await asyncio.gather(*(vision.encode(data) for data in files), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert refused and all(error.retry_after_s for error in refused)
    assert any(not isinstance(outcome, Exception) for outcome in outcomes)


async def test_prompt_tokens_are_capped_before_anything_is_computed(start_vision):
    vision = await start_vision(max_tokens=20)
    with pytest.raises(InvalidRequest, match="max_tokens"):
        await vision.encode(video(12, fps=4, size=(200, 150)), "video")
    with pytest.raises(InvalidRequest, match="max_tokens"):
        await vision.encode(saved(picture(300, 300), "PNG"))


async def test_without_the_store_the_caller_is_told(start_vision, redis):
    vision = await start_vision(store_timeout_s=0.3, store_wait_s=0.5)
    redis.stop()
    with pytest.raises(StoreUnavailable):
        await vision.encode(saved(picture(50, 50), "PNG"))


def test_only_its_own_tensors_are_read(tiny_checkpoint):
    checkpoint = Checkpoint(tiny_checkpoint)
    load_vision(checkpoint, torch.bfloat16)
    specs = list(vision_specs(checkpoint.config.vision))
    assert checkpoint.bytes_read == sum(2 * torch.Size(spec.shape).numel() for spec in specs)


def test_a_checkpoint_without_vision_is_refused(tmp_path):
    write_random_checkpoint(tmp_path / "text", dims=RandomDims(tiny_dims().text))
    with pytest.raises(CheckpointError, match="vision_config"):
        load_vision(Checkpoint(tmp_path / "text"), torch.float32)


@pytest.mark.slow
async def test_the_process_serves_and_ends(tiny_checkpoint, redis, tmp_path):
    path = redis.url.removeprefix("unix://").rsplit("/", 1)[0] + "/vision.sock"
    settings = {"MODEL": str(tiny_checkpoint), "LISTEN": f"unix:{path}", "STORE": redis.url, "DTYPE": "float32"}
    environ = {**os.environ, **{f"MOONSHARD_{name}": value for name, value in settings.items()}}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.vision", env=environ)
    channel = open_channel(f"unix:{path}")
    try:
        await wait_ready(channel, 60)
        ref = (await Vision(None, channel).encode(saved(picture(), "PNG"))).media
        assert isinstance(ref, MediaRef) and ref.num_tokens == 6
        before = psutil.Process(process.pid).memory_info().rss
        files = [png(20000, 6000), b"x", png(20, 20, rows=3), *(png(1700 + n, 1700) for n in range(4))]
        outcomes = await asyncio.gather(*(Vision(None, channel).encode(f) for f in files), return_exceptions=True)
        assert [isinstance(outcome, InvalidRequest) for outcome in outcomes] == [True, True, *[False] * 5]
        # The service holds at most 10 MB of pictures, and the tower's memory for a batch of them.
        grown = max(psutil.Process(process.pid).memory_info().rss - before, 0)
        assert grown < GROWTH_BYTES, grown
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        await channel.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_features_with_and_without_repair_are_not_mixed(start_vision):
    """In one store, a file has separate features with and without repair."""
    transparent = saved(Image.new("RGBA", (60, 60), (0, 0, 0, 0)), "PNG")
    refs = []
    for repair in (True, False):
        vision = await start_vision(image_repair=repair)
        first, again = await vision.encode(transparent), await vision.encode(transparent)
        assert (first.cached, again.cached) == (False, True)
        refs.append(first.media)
    assert refs[0].digest != refs[1].digest
