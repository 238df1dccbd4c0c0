"""Two vocabularies: the real one, from the oracles, and a small one of the same form."""

import pytest

from services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from tests.small_tokenizer import write_small_tokenizer


@pytest.fixture(scope="session")
def kimi(released) -> Vocabulary:
    return load_vocabulary(released)


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
