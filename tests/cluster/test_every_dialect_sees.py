"""The same picture gives the same answer in every dialect, uploaded or inline."""

import base64
import io

import httpx
import pytest
from PIL import Image, ImageDraw

NUM_TOKENS = 8


@pytest.fixture(scope="module")
def png() -> bytes:
    image = Image.new("RGB", (120, 90), "white")
    ImageDraw.Draw(image).rectangle((20, 20, 70, 60), fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def client(start_cluster):
    with httpx.Client(base_url=start_cluster(visions=1).url, timeout=120) as client:
        yield client


def post(client, path, **body):
    response = client.post(path, json={"model": "kimi-k2.6", "temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def chat(client, url):
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe"}]
    answer = post(client, "/v1/chat/completions", max_tokens=NUM_TOKENS, messages=[{"role": "user", "content": parts}])
    return answer["choices"][0]["message"]["reasoning_content"], answer["usage"]["prompt_tokens"]


def test_every_dialect_sees_the_same(client, png):
    data = base64.b64encode(png).decode()
    inline = chat(client, f"data:image/png;base64, {data}")
    upload = client.post("/v1/files", files={"file": ("a.png", png)}, data={"purpose": "image"}).json()
    assert chat(client, f"ms://{upload['id']}") == inline
    source = {"type": "base64", "media_type": "image/png", "data": data}
    message = post(
        client,
        "/v1/messages",
        max_tokens=NUM_TOKENS,
        thinking={"type": "adaptive"},
        messages=[
            {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "Describe"}]}
        ],
    )
    usage = message["usage"]
    assert (
        message["content"][0]["thinking"],
        usage["input_tokens"] + usage["cache_read_input_tokens"],
    ) == inline
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}
    response = post(
        client,
        "/v1/responses",
        max_output_tokens=NUM_TOKENS,
        input=[{"role": "user", "content": [image, {"type": "input_text", "text": "Describe"}]}],
    )
    assert (response["output"][0]["content"][0]["text"], response["usage"]["input_tokens"]) == inline
