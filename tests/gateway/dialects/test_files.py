"""/v1/files: kept in the store for a while, seen by their key only."""

import asyncio
import hashlib
import tempfile
from pathlib import Path

import openai
import pytest

from services.runtime.redis_server import RedisServer

BYTES = bytes(range(256)) * 5000


@pytest.fixture
def redis():
    with tempfile.TemporaryDirectory(prefix="moonshard-") as folder, RedisServer(Path(folder)) as server:
        yield server


@pytest.fixture
def store(redis):
    return (redis.url,)


async def test_the_sdk(start_site, store):
    site = await start_site(store=store)
    other = await start_site(store=store)
    file = await site.openai.files.create(file=("holiday.mp4", BYTES), purpose="video")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(BYTES), "holiday.mp4", "video", "ready")
    assert await other.openai.files.retrieve(file.id) == file
    assert [listed.id async for listed in other.openai.files.list()] == [file.id]
    assert (await other.openai.files.content(file.id)).content == BYTES
    assert await site.gateway.files.file_bytes(file.id) == BYTES
    assert (await other.openai.files.delete(file.id)).deleted
    assert [listed async for listed in site.openai.files.list()] == []
    for call in (site.openai.files.retrieve, site.openai.files.content, site.openai.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(file.id)


async def test_each_key_has_its_own(start_site, store, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("\n".join(hashlib.sha256(key.encode()).hexdigest() for key in ("sk-one", "sk-two")))
    site = await start_site(store=store, keys_file=keys)
    one, two = (site.openai.with_options(api_key=key) for key in ("sk-one", "sk-two"))
    file = await one.files.create(file=("a.png", b"x"), purpose="image")
    assert [listed.id async for listed in one.files.list()] == [file.id]
    assert [listed async for listed in two.files.list()] == []
    for call in (two.files.retrieve, two.files.content, two.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(file.id)
    assert (await one.files.content(file.id)).content == b"x"


async def test_a_store_that_restarts_is_waited_for(start_site, redis, store):
    site = await start_site(store=store, hold_s=20.0)
    redis.stop()
    upload = asyncio.create_task(site.openai.files.create(file=("a.png", b"x"), purpose="image"))
    await asyncio.sleep(0.3)
    assert not upload.done()
    await asyncio.to_thread(redis.start)
    assert (await site.openai.files.content((await upload).id)).content == b"x"


async def test_without_a_store_there_are_none(site):
    upload = {"files": {"file": ("a", b"x")}, "data": {"purpose": "image"}}
    for response in (
        await site.http.post("/v1/files", **upload),
        await site.http.get("/v1/files"),
        await site.http.get("/v1/files/x"),
        await site.http.get("/v1/files/x/content"),
        await site.http.delete("/v1/files/x"),
    ):
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "resource_not_found_error"


async def test_bounds(start_site, store):
    site = await start_site(store=store, max_file_bytes=1000, max_files=2, file_ttl_s=60.0)
    form = {"data": {"purpose": "image"}}
    assert (await site.http.post("/v1/files", files={"file": ("a", b"x" * 1000)}, **form)).status_code == 200
    assert (await site.http.post("/v1/files", files={"file": ("a", b"x" * 1001)}, **form)).status_code == 400
    assert (await site.http.post("/v1/files", files={"file": ("a", b"x" * 100_000)}, **form)).status_code == 413
    assert (await site.http.post("/v1/files", files={"file": ("a", b"")}, **form)).status_code == 200
    response = await site.http.post("/v1/files", files={"file": ("a", b"")}, **form)
    assert response.status_code == 400
    assert "at most 2 files" in response.json()["error"]["message"]


async def test_malformed(start_site, store):
    site = await start_site(store=store)
    file = {"file": ("a", b"x")}
    multipart = {"content-type": "multipart/form-data; boundary=b"}
    rows = [
        ({"files": file}, "purpose"),
        ({"files": file, "data": {"purpose": "world domination"}}, "purpose"),
        ({"files": {"other": ("a", b"x")}, "data": {"purpose": "image"}}, "file"),
        ({"files": {**file, "file2": ("b", b"x")}, "data": {"purpose": "image"}}, None),
        ({"files": {"file": (None, b"x")}, "data": {"purpose": "image"}}, "file"),
        ({"json": {"purpose": "image"}}, "Content-Type"),
        ({"data": {"purpose": "image"}}, "Content-Type"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "Content-Type"),
        ({"content": b"", "headers": multipart}, "file"),
        ({"content": b"nonsense", "headers": multipart}, None),
        ({"content": b"--b\r\nx\r\n\r\n--b--", "headers": multipart}, None),
    ]
    wrong = []
    for request, param in rows:
        response = await site.http.post("/v1/files", **request)
        if response.status_code != 400 or response.json()["error"]["param"] != param:
            wrong.append((request, param, response.status_code, response.text))
    assert wrong == []


async def test_redis_gone(start_site, store):
    site = await start_site(store=("redis://127.0.0.1:1/0",))
    assert (await site.http.get("/v1/files")).status_code == 503
