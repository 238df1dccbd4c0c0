"""Answers about pictures and videos equal the reference token for token, whatever way the features and the KV take."""

import asyncio
import base64
import io
import random
import signal
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from protos import attention_pb2 as pb
from services.model.checkpoint import Checkpoint
from services.model.media import media_key, model_name
from services.runtime.blobs import BlobStore
from services.runtime.errors import InvalidRequest, MediaMissing
from tests.cluster.client import TokenClient
from tests.reference.model import ReferenceModel
from tests.reference.vision import ReferenceVision
from tests.services.vision.hostile import video

# 88 tokens: more than a chunk of 64 and than five blocks of 16, and never at the beginning of either.
SIZE = (300, 200)
NUM_TOKENS = 12

TOPOLOGIES = [
    pytest.param({}, id="prefill-and-decode-apart"),
    pytest.param({"prefills": 0, "experts": 0}, id="no-prefill-replica"),
    pytest.param(
        {"attention_shards": 2, "settings": {"attention": {"MICRO_BATCH_TOKENS": "2", "STEP_TOKENS": "23"}}},
        id="two-shards-two-micro-batches-small-chunks",
    ),
]


def noise(seed, size=SIZE):
    pixels = random.Random(seed).randbytes(size[0] // 10 * (size[1] // 10) * 3)
    return Image.frombytes("RGB", (size[0] // 10, size[1] // 10), pixels).resize(size, Image.Resampling.NEAREST)


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def data_url(data, media_type="image/png"):
    return f"data:{media_type};base64, {base64.b64encode(data).decode()}"


@pytest.fixture(scope="session")
def reference(tiny_checkpoint: Path) -> ReferenceModel:
    return ReferenceModel(tiny_checkpoint)


@pytest.fixture(scope="session")
def vision(tiny_checkpoint: Path) -> ReferenceVision:
    return ReferenceVision(tiny_checkpoint)


@pytest.fixture(params=TOPOLOGIES, scope="module")
def some_cluster(request, start_cluster):
    return start_cluster(visions=1, **request.param)


@pytest.fixture
def seeing_cluster(start_cluster):
    return start_cluster(visions=1)


@pytest.fixture
async def store(seeing_cluster):
    opened = BlobStore(seeing_cluster.store_urls, ttl_s=60)
    yield opened
    await opened.close()


def greedy(reference, prompt, features, num_tokens=NUM_TOKENS):
    media = [(span.offset, tensor) for span, tensor in zip(prompt.media, features, strict=True)]
    return reference.generate(list(prompt.token_ids), num_tokens, media=media)


async def test_an_image_cold_and_from_every_cache(some_cluster, reference, vision):
    async with TokenClient(some_cluster) as client:
        image = noise(1)
        features = [vision.image(image)]
        encoded = await client.encode(png(image))
        for text in ("What is this?", "Something else entirely: a longer question, over two blocks or so?"):
            prompt = await client.render_media([text, encoded.media, "Say."])
            assert prompt.media[0].media.num_tokens == 88
            expected = greedy(reference, prompt, features)
            assert expected != greedy(reference, prompt, [-features[0]]), "the picture makes no difference"
            # Cold; then the prefix is in memory. The second text finds only the features of the first.
            for state in ("cold", "cached"):
                answer = await client.generate(prompt.token_ids, NUM_TOKENS, media=prompt.media)
                assert answer == expected, (text, state)
            assert (await client.encode(png(image))).cached
        await client.idle()


async def test_different_pictures_share_no_prefix_and_the_same_one_does(seeing_cluster, reference, vision):
    sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4)
    async with TokenClient(seeing_cluster) as client:
        cached = []
        for seed in (21, 22, 21):
            encoded = await client.encode(png(noise(seed)))
            prompt = await client.render_media(["A" * 40, encoded.media, "b"])
            first = await client.prefill(prompt.token_ids, sampling, media=prompt.media)
            assert [first.token_id] == greedy(reference, prompt, [vision.image(noise(seed))], 1)
            cached.append(first.num_cached_tokens)
        before_image = prompt.media[0].offset // 16 * 16
        assert cached == [0, before_image, (len(prompt.token_ids) - 1) // 16 * 16]
        await client.idle()


async def test_several_images_and_a_video(some_cluster, reference, vision):
    async with TokenClient(some_cluster) as client:
        images = [noise(3, (90, 60)), noise(4, (200, 130)), noise(3, (90, 60))]
        film = video(30, fps=6, size=(96, 64))
        refs = [(await client.encode(png(image))).media for image in images]
        film_ref = (await client.encode(film, "VIDEO")).media
        prompt = await client.render_media(["One", refs[0], refs[1], "two", film_ref, refs[2], "and?"])
        chunks = [vision.chunk(frames) for frames in film_chunks(film)]
        assert len(chunks) == len(film_ref.chunks) == 3
        assert [len(span) for span in chunks] == [chunk.media.num_tokens for chunk in film_ref.chunks]
        features = [vision.image(images[0]), vision.image(images[1]), *chunks, vision.image(images[2])]
        answer = await client.generate(prompt.token_ids, NUM_TOKENS, media=prompt.media)
        assert answer == greedy(reference, prompt, features)
        await client.idle()


def film_chunks(data):
    """Ten of thirty frames, evenly spread; four to a chunk."""
    with av.open(io.BytesIO(data)) as container:
        frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    chosen = [frames[round(index)] for index in np.linspace(0, len(frames) - 1, 10)]
    return [chosen[0:4], chosen[4:8], chosen[8:10]]


async def test_a_generation_moves_in_the_middle_of_an_answer(start_cluster, reference, vision):
    """The other replica has neither KV nor manifest: it computes the prompt, so it needs the features itself."""
    cluster = start_cluster(visions=1, prefills=0, experts=0)
    async with TokenClient(cluster) as client:
        image = noise(5)
        encoded = await client.encode(png(image))
        prompt = await client.render_media([encoded.media, "Go on."])
        expected = greedy(reference, prompt, [vision.image(image)])
        sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=NUM_TOKENS)
        stream = client.stream(prompt.token_ids, expected[:5], sampling, media=prompt.media)
        assert expected[:5] + [token async for token in stream] == expected
        await client.idle()


async def test_preemption_fetches_features_again(start_cluster, reference, vision):
    """Four prompts of about 110 tokens want 40 blocks of 18."""
    cluster = start_cluster(visions=1, prefills=0, experts=0, settings={"decode": {"NUM_BLOCKS": "18"}})
    async with TokenClient(cluster) as client:
        images = [noise(30 + n) for n in range(4)]
        prompts = [await client.render_media([(await client.encode(png(i))).media, "Well?"]) for i in images]
        answers = await asyncio.gather(*(client.generate(p.token_ids, 40, media=p.media) for p in prompts))
        for prompt, image, answer in zip(prompts, images, answers, strict=True):
            assert answer == greedy(reference, prompt, [vision.image(image)], 40)
        await client.idle()


async def lose_features(store, tiny_checkpoint, ref):
    await store.delete([media_key(model_name(Checkpoint(tiny_checkpoint).digest()), ref.digest)])


async def test_missing_features_are_reported_and_needless_ones_are_not_missed(seeing_cluster, store, tiny_checkpoint):
    sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4)
    async with TokenClient(seeing_cluster) as client:
        encoded = await client.encode(png(noise(6)))
        prompt = await client.render_media(["Look:", encoded.media, "what follows is longer than a block of tokens"])
        await lose_features(store, tiny_checkpoint, encoded.media)
        with pytest.raises(MediaMissing):
            await client.prefill(prompt.token_ids, sampling, media=prompt.media)
        again = await client.encode(png(noise(6)))
        assert again.media == encoded.media and not again.cached
        first = await client.prefill(prompt.token_ids, sampling, media=prompt.media)
        await lose_features(store, tiny_checkpoint, encoded.media)
        # All of the image lies in blocks that are known by now.
        assert (await client.prefill(prompt.token_ids, sampling, media=prompt.media)).token_id == first.token_id
        await client.idle()


@pytest.mark.parametrize(
    "change, reason",
    [
        pytest.param({"offset": 0}, "placeholders", id="beside-the-placeholders"),
        pytest.param({"num_tokens": 3}, "no medium covers", id="too-few"),
        pytest.param({"num_tokens": 10_000}, "do not fit", id="too-many"),
        pytest.param({"digest": b"short"}, "digest", id="digest"),
        pytest.param(None, "no medium covers", id="none"),
    ],
)
async def test_spans_that_do_not_fit_the_prompt_are_refused(seeing_cluster, change, reason):
    sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4)
    async with TokenClient(seeing_cluster) as client:
        prompt = await client.render_media([(await client.encode(png(noise(7, (60, 60))))).media])
        spans = list(prompt.media) if change is not None else []
        for name, value in (change or {}).items():
            setattr(spans[0] if name == "offset" else spans[0].media, name, value)
        with pytest.raises(InvalidRequest, match=reason):
            await client.prefill(prompt.token_ids, sampling, media=spans)


class Http:
    """The gateway's front door."""

    def __init__(self, cluster):
        self._client = httpx.AsyncClient(base_url=cluster.url, timeout=120, trust_env=False)

    async def chat(self, messages, **how):
        body = {"model": "kimi-k2.6", "temperature": 0, "max_tokens": NUM_TOKENS, "thinking": {"type": "disabled"}}
        return await self._client.post("/v1/chat/completions", json={**body, "messages": messages, **how})

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self._client.aclose()


def image_part(data, **how):
    return {"type": "image_url", "image_url": {"url": data_url(data, **how)}}


async def test_the_whole_way_through_the_gateway(seeing_cluster, reference, vision):
    image = noise(8)
    async with TokenClient(seeing_cluster) as client, Http(seeing_cluster) as http:
        content = [{"type": "text", "text": "What is"}, image_part(png(image)), {"type": "text", "text": "this?"}]
        answers = [(await http.chat([{"role": "user", "content": content}])).json() for _ in range(2)]
        prompt = await client.render_media(["What is", (await client.encode(png(image))).media, "this?"])
        expected = await client.text_of(greedy(reference, prompt, [vision.image(image)]))
        for answer in answers:
            assert answer["choices"][0]["message"]["content"] == expected
            assert answer["usage"]["prompt_tokens"] == len(prompt.token_ids)
        assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] >= 96
        await client.idle()


async def test_images_in_every_role_and_tool_results_and_a_video(seeing_cluster):
    pictures = [image_part(png(noise(seed, (60, 50)))) for seed in range(50, 54)]
    call = {"id": "functions.look:0", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    film = {"type": "video_url", "video_url": {"url": data_url(video(6, fps=2), "video/mp4")}}
    messages = [
        {"role": "system", "content": [pictures[0]]},
        {"role": "user", "content": [pictures[1], pictures[2], {"type": "text", "text": "both?"}, film]},
        {"role": "assistant", "content": [pictures[3]], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.look:0", "content": [pictures[0]]},
    ]
    bare = [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]} for message in messages
    ]
    async with Http(seeing_cluster) as http:
        answer, without = await http.chat(messages), await http.chat(bare)
        assert answer.status_code == without.status_code == 200, answer.text
        tokens, fewer = (response.json()["usage"]["prompt_tokens"] for response in (answer, without))
        # Five images of six tokens, two chunks of six: more than these, by their markers and times.
        assert tokens > fewer + 7 * 6


@pytest.mark.parametrize(
    "part, reason",
    [
        pytest.param({"url": "http://127.0.0.1/a.png"}, "remote URLs are not fetched", id="http"),
        pytest.param({"url": "https://example.com/a.png"}, "remote URLs are not fetched", id="https"),
        pytest.param({"url": "file:///etc/passwd"}, "must be a data: URL", id="file"),
        pytest.param({"url": "/etc/passwd"}, "must be a data: URL", id="path"),
        pytest.param({"url": "ms://file-1"}, "no such file", id="file-store"),
        pytest.param({"url": "data:image/png;base64,%%%"}, "not valid base64", id="alphabet"),
        pytest.param({"url": "data:image/png;base64,ab-_"}, "not valid base64", id="url-safe-alphabet"),
        pytest.param({"url": "data:image/png,abc"}, "must be base64", id="not-base64"),
        pytest.param({"url": "data:image/png;base64,"}, "the file is empty", id="empty"),
        pytest.param({"url": data_url(b"hello")}, "the data is no image", id="no-image"),
        pytest.param({"url": data_url(png(noise(1))[:-80])}, "the image is damaged", id="truncated"),
    ],
)
async def test_what_cannot_be_seen_is_a_400_with_the_reason(seeing_cluster, part, reason):
    async with Http(seeing_cluster) as http:
        content = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": part}]
        answer = await http.chat([{"role": "user", "content": content}])
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert reason in error["message"]
        assert error["param"] == "messages.0.content.1.image_url"


async def test_features_that_left_the_store_are_made_again_unseen(seeing_cluster, store, tiny_checkpoint):
    """The vision replica believes that the features are there; the engine finds that they are damaged."""
    image = png(noise(9))
    content = [image_part(image), {"type": "text", "text": "Once"}]
    async with TokenClient(seeing_cluster) as client, Http(seeing_cluster) as http:
        ref = (await client.encode(image)).media
        key = media_key(model_name(Checkpoint(tiny_checkpoint).digest()), ref.digest)
        (features,) = await store.get([key])
        await store.put({key: bytes(features[:-4])})
        assert (await client.encode(image)).cached
        answer = await http.chat([{"role": "user", "content": content}])
        assert answer.status_code == 200, answer.text
        assert (await store.get([key])) == [features]


async def test_a_killed_vision_replica_is_not_noticed(start_cluster):
    cluster = start_cluster(visions=2, prefills=0, experts=0)
    async with Http(cluster) as http:

        async def ask(seed):
            content = [image_part(png(noise(100 + seed))), {"type": "text", "text": "Hm?"}]
            return (await http.chat([{"role": "user", "content": content}], max_tokens=2)).status_code

        asking = [asyncio.create_task(ask(seed)) for seed in range(12)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(cluster.kill, "vision-0", signal.SIGKILL)
        assert await asyncio.gather(*asking) == [200] * 12
        await asyncio.to_thread(cluster.wait_ready, "vision-0")
