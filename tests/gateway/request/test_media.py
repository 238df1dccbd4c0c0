"""What clients send as images and videos: data URLs in all their spellings, and everything that is refused."""

import base64

import pytest

from gateway.request.chat_model import Media
from gateway.request.media import PIECE_BYTES, decode_url
from services.runtime.errors import InvalidRequest

BYTES = bytes(range(256))
TEXT = base64.b64encode(BYTES).decode()


def media(url):
    return Media("image", url, "messages.0.content.0.image_url")


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"data:image/png;base64,{TEXT}", id="plain"),
        pytest.param(f"data:image/png;base64, {TEXT}", id="blank-of-the-model-card"),
        pytest.param(f"data:image/.png;base64,{TEXT}", id="media-type-of-the-docs"),
        pytest.param(f"data:;base64,{TEXT}", id="no-media-type"),
        pytest.param(f"data:image/png;charset=x;base64,{TEXT}", id="parameters"),
        pytest.param(f"DATA:image/png;BASE64,{TEXT}", id="capitals"),
        pytest.param("data:image/png;base64," + "\r\n".join(TEXT[i : i + 76] for i in range(0, 400, 76)), id="lines"),
        pytest.param(f"data:image/png;base64,\t{TEXT[:7]} {TEXT[7:]}\n", id="white-space"),
        pytest.param(f"data:image/png;base64,{TEXT.rstrip('=')}", id="no-padding"),
        pytest.param(f"data:image/png;base64,{TEXT}==", id="too-much-padding"),
    ],
)
def test_data_urls(url):
    assert decode_url(media(url)) == BYTES


@pytest.mark.parametrize(
    "url, reason",
    [
        pytest.param("", "must be a data: URL", id="empty"),
        pytest.param(TEXT, "must be a data: URL", id="bare-base64"),
        pytest.param("http://a/b.png", "remote URLs are not fetched", id="http"),
        pytest.param("HTTPS://a/b.png", "remote URLs are not fetched", id="https"),
        pytest.param("ms://abc", "no such file", id="file-store"),
        pytest.param("file:///etc/passwd", "must be a data: URL", id="file"),
        pytest.param("ftp://a/b", "must be a data: URL", id="ftp"),
        pytest.param("data:image/png;base64", "must be base64", id="no-comma"),
        pytest.param(f"data:image/png,{TEXT}", "must be base64", id="percent-encoding"),
        pytest.param("data:image/png;base64,ab$d", "not valid base64", id="alphabet"),
        pytest.param("data:image/png;base64,ab-_", "not valid base64", id="url-safe-alphabet"),
        pytest.param("data:image/png;base64,abcde", "not valid base64", id="one-letter-too-many"),
        pytest.param("data:image/png;base64,ab=c", "not valid base64", id="padding-inside"),
        pytest.param("data:image/png;base64,äöü", "not valid base64", id="not-ascii"),
    ],
)
def test_what_is_refused(url, reason):
    with pytest.raises(InvalidRequest, match=reason) as error:
        decode_url(media(url))
    assert error.value.field == "messages.0.content.0.image_url"


async def test_without_a_vision_replica_an_image_is_refused(site):
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}"}}
    answer = await site.chat(messages=[{"role": "user", "content": [part]}])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages.0.content.0.image_url"


async def test_the_number_of_media_is_bounded(start_site):
    site = await start_site(max_media=2)
    urls = [f"data:image/png;base64,{base64.b64encode(bytes([n])).decode()}" for n in range(3)]
    parts = [{"type": "image_url", "image_url": url} for url in urls]
    answer = await site.chat(messages=[{"role": "user", "content": parts}])
    assert answer.status_code == 400 and "max_media" in answer.json()["error"]["message"]


async def test_a_vision_replica_that_is_not_there_is_a_503(start_site):
    site = await start_site(visions=("127.0.0.1:1",))
    part = {"type": "image_url", "image_url": f"data:image/png;base64,{TEXT}"}
    answer = await site.chat(messages=[{"role": "user", "content": [part]}])
    assert answer.status_code == 503 and answer.headers["retry-after"]


@pytest.mark.parametrize("num_bytes", [PIECE_BYTES - 1, PIECE_BYTES * 3 // 4, 2 * PIECE_BYTES + 1])
def test_large_payloads_are_decoded_in_pieces(num_bytes):
    data = bytes(range(256)) * (num_bytes // 256) + b"\x00" * (num_bytes % 256)
    text = base64.b64encode(data).decode()
    for written in (text, f"{text[:5]}\n{text[5:]}", text.rstrip("=")):
        assert decode_url(media(f"data:;base64,{written}")) == data
    broken = f"{text[: PIECE_BYTES - 2]}=={text[PIECE_BYTES - 2 :]}"
    with pytest.raises(InvalidRequest, match="not valid base64"):
        decode_url(media(f"data:;base64,{broken}"))
