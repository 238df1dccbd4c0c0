"""Pictures and videos over HTTP: answers, refusals, and losses that no client notices."""

import asyncio
import signal

import httpx
import pytest

from services.checkpoint.media_names import media_key, model_name
from services.model.checkpoint import Checkpoint
from tests.cluster.client import TokenClient
from tests.cluster.pictures import NUM_TOKENS, data_url, greedy, noise, png
from tests.services.vision.hostile import video


class Http:
    """An HTTP client of the gateway."""

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
        pytest.param({"url": data_url(b"hello")}, "the data is not an image in PNG", id="no-image"),
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_vision_replica_that_ends_is_not_noticed(start_cluster, number):
    cluster = start_cluster(visions=2, prefills=0, experts=0)
    async with Http(cluster) as http:

        async def ask(seed):
            content = [image_part(png(noise(100 * number + seed))), {"type": "text", "text": "Hm?"}]
            return (await http.chat([{"role": "user", "content": content}], max_tokens=2)).status_code

        asking = [asyncio.create_task(ask(seed)) for seed in range(16)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(cluster.kill, "vision-0", number)
        assert await asyncio.gather(*asking) == [200] * 16
        await asyncio.to_thread(cluster.wait_ready, "vision-0")
