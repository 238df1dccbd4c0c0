"""Two vocabularies: the real one, from the oracles, and a small one of the same form."""

import pytest

from services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from tests.small_tokenizer import write_small_tokenizer


@pytest.fixture(scope="session")
def kimi_folder(shared_data, tmp_path_factory):
    """The real vocabulary in a folder of the released layout: the oracle calls its config.json otherwise."""
    folder = tmp_path_factory.mktemp("kimi")
    source = shared_data / "kimi-k2-tokenizer"
    for name, original in {
        "tiktoken.model": "tiktoken.model",
        "tokenizer_config.json": "tokenizer_config.json",
        "config.json": "model_config.json",
    }.items():
        (folder / name).symlink_to(source / original)
    return folder


@pytest.fixture(scope="session")
def kimi(kimi_folder) -> Vocabulary:
    return load_vocabulary(kimi_folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A byte vocabulary, so that every character beyond ASCII is cut by tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    write_small_tokenizer(folder, 256)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> Vocabulary:
    return load_vocabulary(tiny_folder)


@pytest.fixture(params=["tiny", "kimi"])
def vocabulary(request) -> Vocabulary:
    return request.getfixturevalue(request.param)
