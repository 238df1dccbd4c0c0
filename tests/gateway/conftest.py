"""The small vocabulary of random checkpoints, and sites around it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from tests.gateway.site import CONTEXT_TOKENS, Site
from tests.small_tokenizer import write_small_tokenizer

NUM_TOKENS = 768


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_small_tokenizer(folder, NUM_TOKENS, CONTEXT_TOKENS)
    return load_vocabulary(folder)


@pytest.fixture
async def start_site(vocabulary) -> AsyncIterator[Callable[..., Any]]:
    """Starts a site: `await start_site(decodes=2, answer="...")`."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Site:
            return await stack.enter_async_context(Site(vocabulary, **options))

        yield start


@pytest.fixture
async def site(start_site) -> Site:
    """One replica of each role."""
    return await start_site()
