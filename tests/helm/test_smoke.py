"""The script of `helm test`, run as its pod runs it, against a real gateway."""

import asyncio
import sys

import pytest

from tests.gateway.conftest import start_site, vocabulary  # noqa: F401
from tests.gateway.site import HELLO, MODEL
from tests.helm.rendering import pods


async def run_smoke(url, model):
    (container,) = pods()["smoke"]["containers"]
    assert container["command"] == ["python", "-c"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", *container["args"]),
        env={"URL": url, "MODEL": model},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, errors = await process.communicate()
    return process.returncode, out.decode(), errors.decode()


@pytest.fixture
async def url(start_site):  # noqa: F811
    site = await start_site()
    site.say(HELLO)
    return site.url


async def test_it_passes_where_a_stream_is_complete(url):
    code, out, errors = await run_smoke(url, MODEL)
    assert code == 0, errors
    assert out.endswith(f"pieces of {MODEL}\n")


async def test_it_fails_where_another_model_is_served(url):
    code, _, errors = await run_smoke(url, "another")
    assert code == 1
    assert "another is not among" in errors
