"""Two vocabularies, the real one and a small one of the same form, and the service."""

import pytest

from protos import tokenizer_pb2 as pb
from protos.tokenizer_pb2_grpc import TokenizerServiceStub, add_TokenizerServiceServicer_to_server
from services.runtime.channels import open_channel
from services.runtime.errors import Unavailable
from services.runtime.lanes.caller import LaneStream
from services.runtime.server import start_server
from services.tokenizer.long_work import LongWork
from services.tokenizer.service import TokenizerServicer
from services.tokenizer.vocabulary import Vocabulary, load_vocabulary
from tests.small_tokenizer import write_small_tokenizer

MAX_REQUEST_BYTES = 1_000_000
MAX_REMEMBERED_BYTES = 1 << 20


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


@pytest.fixture
def work():
    work = LongWork(threads=1, max_waiting=4, max_waiting_bytes=1 << 24)
    yield work
    work.close()


@pytest.fixture
def servicer(tiny, work):
    return TokenizerServicer(tiny, work, MAX_REQUEST_BYTES, MAX_REMEMBERED_BYTES)


@pytest.fixture
async def stub(servicer):
    server, address = await start_server(lambda server: add_TokenizerServiceServicer_to_server(servicer, server))
    async with open_channel(address) as channel:
        yield TokenizerServiceStub(channel)
    await server.stop(None)


@pytest.fixture
async def answers(stub):
    """A stream of answers."""
    stream = LaneStream(stub.ParseAnswers(), pb.ParseAnswersRequest, "the tokenizer")
    yield stream
    stream.end(Unavailable("the test is over"))
