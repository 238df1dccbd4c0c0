"""`python -m gateway` as a process: settings, readiness, SIGTERM in the middle of a stream."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.gateway.site import HELLO
from tests.gateway.streams import read_stream

pytestmark = pytest.mark.slow

NUM_STREAMS = 16


def environment(site, **more):
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MOONSHARD_")},
        "MOONSHARD_LISTEN": "127.0.0.1:0",
        "MOONSHARD_TOKENIZERS": site.tokenizers[0].address if site else "127.0.0.1:1",
        "MOONSHARD_DECODES": site.decodes[0].address if site else "127.0.0.1:1",
        **more,
    }


@pytest.fixture
async def gateway(site, request):
    """A gateway process before the site's engines, with a test's own settings: (process, URL)."""
    more = getattr(request, "param", {})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", env=environment(site, **more), stderr=asyncio.subprocess.PIPE
    )
    try:
        address = None
        while address is None:
            line = json.loads(await process.stderr.readline())
            address = line.get("address")
        yield process, f"http://{address}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_sigterm_lets_streams_end(site, gateway):
    process, url = gateway
    site.say(HELLO.replace("Hello", "Hello " * 20))
    site.decodes[0].token_s = 0.02
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        async with asyncio.timeout(20):
            while (await http.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)
        flowing = asyncio.Barrier(NUM_STREAMS + 1)

        async def stream():
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                pieces = response.aiter_raw()
                raw = await anext(pieces)
                await flowing.wait()
                return raw + b"".join([piece async for piece in pieces])

        streams = [asyncio.create_task(stream()) for _ in range(NUM_STREAMS)]
        await flowing.wait()
        process.send_signal(signal.SIGTERM)
        for raw in await asyncio.gather(*streams):
            assert read_stream(raw).text[0].startswith("Hello Hello")
    async with asyncio.timeout(10):
        assert await process.wait() == 0


STREAMS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1000},
    "/v1/responses": {"input": "Hi"},
}


@pytest.mark.parametrize("gateway", [{"MOONSHARD_DRAIN_S": "1"}], indirect=True)
async def test_what_outlasts_the_drain_gets_an_error(site, gateway):
    process, url = gateway
    site.say(HELLO.replace("Hello", "Hello " * 200))
    site.decodes[0].token_s = 0.05
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        async with asyncio.timeout(20):
            while (await http.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)
        flowing = asyncio.Barrier(len(STREAMS) + 1)

        async def stream(path, body):
            async with http.stream("POST", path, json={"model": "kimi-k2.6", "stream": True, **body}) as response:
                pieces = response.aiter_raw()
                raw = await anext(pieces)
                await flowing.wait()
                return raw + b"".join([piece async for piece in pieces])

        streams = [asyncio.create_task(stream(path, body)) for path, body in STREAMS.items()]
        whole = asyncio.create_task(
            http.post("/v1/chat/completions", json={"model": "kimi-k2.6", **STREAMS["/v1/chat/completions"]})
        )
        await flowing.wait()
        while site.decodes[0].num_running < len(STREAMS) + 1:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for path, raw in zip(STREAMS, await asyncio.gather(*streams), strict=True):
            last = raw.removesuffix(b"data: [DONE]\n\n").strip().split(b"\n\n")[-1].decode()
            assert "the server stops" in last, path
            assert ("overloaded_error" if path == "/v1/messages" else "server_") in last, path
        answer = await whole
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_unavailable")
    async with asyncio.timeout(10):
        log = (await process.stderr.read()).decode()
        assert await process.wait() == 0
    assert "Traceback" not in log
    assert "ERROR" not in log


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOONSHARD_TOKENIZERS", ""),
        ("MOONSHARD_DECODES", "nowhere"),
        ("MOONSHARD_LISTEN", "here"),
        ("MOONSHARD_STALL_S", "0"),
        ("MOONSHARD_STREAM_REASONING_FIELDS", "thoughts"),
    ],
)
def test_a_bad_setting_stops_the_process_and_is_named(name, value):
    done = subprocess.run(
        [sys.executable, "-m", "gateway"],
        env=environment(None, **{name: value}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_a_line_in_the_log():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "gateway"],
            env=environment(None, MOONSHARD_LISTEN=address),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert json.loads(done.stderr)["msg"].startswith(f"cannot listen on {address}: Address already in use")
