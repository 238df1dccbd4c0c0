"""Answers about pictures and videos equal the reference token for token, whichever way features and latent KV take."""

import asyncio
import io

import av
import numpy as np
import pytest
from PIL import Image

from protos import attention_pb2 as pb
from services.checkpoint.media_names import media_key, model_name
from services.model.checkpoint import Checkpoint
from services.runtime.errors import InvalidRequest, MediaMissing
from tests.cluster.client import TokenClient
from tests.cluster.pictures import NUM_TOKENS, greedy, noise, png
from tests.services.vision.hostile import video

TOPOLOGIES = [
    pytest.param({}, id="prefill-and-decode-apart"),
    pytest.param({"prefills": 0, "experts": 0}, id="no-prefill-replica"),
    pytest.param(
        {"attention_shards": 2, "settings": {"attention": {"MICRO_BATCH_TOKENS": "2", "STEP_TOKENS": "23"}}},
        id="two-shards-two-micro-batches-small-chunks",
    ),
]


@pytest.fixture(params=TOPOLOGIES, scope="module")
def some_cluster(request, start_cluster):
    return start_cluster(visions=1, **request.param)


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
    """Return ten of thirty frames, evenly spread, in chunks of four."""
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
        # The whole image is in blocks that are known by now.
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
