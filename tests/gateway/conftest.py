"""The small vocabulary of random checkpoints, and sites around it."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from services.local.random_checkpoint.vocabulary import special_ids, write_small_vocabulary
from services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from tests.gateway.site import CONTEXT_TOKENS, Site

NUM_TOKENS = 768


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_small_vocabulary(folder, NUM_TOKENS)
    text_config = {"vocab_size": NUM_TOKENS + 256, "max_position_embeddings": CONTEXT_TOKENS}
    config = {"eos_token_id": special_ids(NUM_TOKENS)["<|im_end|>"], "text_config": text_config}
    (folder / "config.json").write_text(json.dumps(config))
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
