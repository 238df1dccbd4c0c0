"""A tiny checkpoint, written once."""

from contextlib import ExitStack

import pytest

from services.local.random_checkpoint.write import write_random_checkpoint


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_random_checkpoint(path)
    return path


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack
