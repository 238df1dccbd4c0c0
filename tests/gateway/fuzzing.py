"""What all fuzz tests share: a site in a thread, and values of every shape."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from services.tokenizer.vocabulary import Vocabulary
from tests.gateway.site import CONTEXT_TOKENS, Site

MANY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
WORDS = st.sampled_from(
    ["type", "role", "content", "text", "function", "name", "url", "user", "assistant", "tool", "id"]
)
VALUES = st.recursive(
    LEAVES | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@contextmanager
def site_in_thread(vocabulary: Vocabulary, *, max_body_bytes: int = 20_000, endless: bool = False) -> Iterator[str]:
    """The URL of a site that lives in a thread, since hypothesis runs a test many times in no event loop.

    endless  answers are long enough for requests that ignore the end
    """
    started: list[str] = []
    ready = threading.Event()
    done = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with Site(vocabulary, max_body_bytes=max_body_bytes) as site:
            if endless:
                site.answer_ids = site.answer_ids * (CONTEXT_TOKENS // len(site.answer_ids) + 1)
                for engine in site.decodes:
                    engine.num_at_once = 100
            started.append(site.url)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


@contextmanager
def client_of_site(vocabulary: Vocabulary) -> Iterator[httpx.Client]:
    """A client of a site in a thread."""
    with (
        site_in_thread(vocabulary) as url,
        httpx.Client(base_url=url, timeout=20, trust_env=False) as client,
    ):
        yield client
