"""Errors keep their class, their field and their delay over the wire."""

import grpc
import grpc.aio
import pytest

from services.runtime import errors
from services.runtime.errors import MoonshardError, error_from_rpc, error_to_metadata

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MoonshardError)]


def over_the_wire(error: MoonshardError) -> MoonshardError:
    trailing = grpc.aio.Metadata(("other", "1"), *error_to_metadata(error))
    return error_from_rpc(grpc.aio.AioRpcError(error.code, None, trailing, details=error.message))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "field, retry_after_s",
    [
        pytest.param(None, None, id="bare"),
        pytest.param("messages[0].content", None, id="field"),
        pytest.param(None, 1.5, id="delay"),
        pytest.param("tools[0].\N{CRESCENT MOON}\n\0", 0.0, id="any-character"),
    ],
)
def test_class_field_and_delay_arrive(kind, field, retry_after_s):
    error = over_the_wire(kind("no \N{CRESCENT MOON}", field=field, retry_after_s=retry_after_s))
    assert type(error) is kind
    assert (error.message, error.field, error.retry_after_s) == ("no \N{CRESCENT MOON}", field, retry_after_s)


def test_a_class_that_only_the_peer_knows_becomes_that_of_its_code():
    metadata = [
        (key, value.replace(b"Overloaded", b"Overwhelmed"))
        for key, value in error_to_metadata(errors.Overloaded("full"))
    ]
    error = error_from_rpc(
        grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, None, grpc.aio.Metadata(*metadata), details="full")
    )
    assert type(error) is errors.Overloaded


@pytest.mark.parametrize(
    "code, kind",
    [
        pytest.param(grpc.StatusCode.UNAVAILABLE, errors.Unavailable, id="no-connection"),
        pytest.param(grpc.StatusCode.CANCELLED, errors.Unavailable, id="cancelled-by-the-peer"),
        pytest.param(grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded, id="deadline"),
        pytest.param(grpc.StatusCode.UNIMPLEMENTED, errors.WireError, id="other-protocol"),
        pytest.param(grpc.StatusCode.UNKNOWN, MoonshardError, id="anything-else"),
    ],
)
def test_failures_of_the_transport_have_a_class(code, kind):
    error = error_from_rpc(grpc.aio.AioRpcError(code, None, None, details=None))
    assert type(error) is kind
    assert error.message == code.name


def test_a_caller_that_only_knows_unavailable_catches_its_kinds():
    assert issubclass(errors.StoreUnavailable, errors.Unavailable)
    assert issubclass(errors.ExpertsUnavailable, errors.Unavailable)
