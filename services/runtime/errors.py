"""The errors that cross process boundaries; the class determines what the caller should do next.

A server turns a `MoonshardError` into the status code of its class and puts class, field and delay into the trailing
metadata; `error_from_rpc` restores the same error on the other side.
"""

import json
from collections.abc import Iterator
from typing import ClassVar

import grpc
import grpc.aio

# One binary key, so that a field name may have any character.
ERROR_KEY = "moonshard-error-bin"
# gRPC bounds trailing metadata; with more, the client would get a transport error instead.
MAX_MESSAGE_BYTES = 2000
MAX_FIELD_CHARS = 200


class MoonshardError(Exception):
    """A fault of a caller, a peer or a disk. Our own mistakes are assertions.

    field          the request field at fault, in the client's spelling
    retry_after_s  time after which a retry may help
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequest(MoonshardError):
    """The request can never be served. Change it."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class RequestTooLarge(InvalidRequest):
    """The request is over a limit of size. Send less."""


class NotFound(MoonshardError):
    """An object named in the request does not exist here."""

    code = grpc.StatusCode.NOT_FOUND


class KvMissing(MoonshardError):
    """The store dropped a block this request needs. The caller should prefill again."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class MediaMissing(MoonshardError):
    """The store dropped features of an image or video. The caller should get it encoded again."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(MoonshardError):
    """A bound is reached. Try again after `retry_after_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(MoonshardError):
    """No process answers there, or it is draining. Try another replica."""

    code = grpc.StatusCode.UNAVAILABLE


class ExpertsUnavailable(Unavailable):
    """An expert shard has no live replica. Try again later."""


class StoreUnavailable(Unavailable):
    """The store does not answer. Go on without it, or try again later."""


class StoreNotSupported(MoonshardError):
    """The store speaks another protocol than ours. Stops the process."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class DeadlineExceeded(MoonshardError):
    """The time that the caller gave is over."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CheckpointError(MoonshardError):
    """The checkpoint is damaged, incomplete or of another architecture. Stops the process."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class WireError(MoonshardError):
    """A peer violated the protocol: it has another version or a defect."""


class NumericError(MoonshardError):
    """The model computed NaN or infinity. Do not use the result."""


def error_to_metadata(error: MoonshardError) -> tuple[tuple[str, bytes], ...]:
    """Return trailing metadata from which `error_from_rpc` restores the error."""
    record = {
        "class": type(error).__name__,
        "field": error.field and error.field[:MAX_FIELD_CHARS],
        "retry_after_s": error.retry_after_s,
    }
    return ((ERROR_KEY, json.dumps(record).encode()),)


def error_from_rpc(error: grpc.aio.AioRpcError) -> MoonshardError:
    """Return the server's error, of the same class; for a transport failure an error of the code's class.

    A call cancelled by the peer, or by the peer's end, is `Unavailable`; only our own cancellation is a CancelledError.
    """
    message = error.details() or error.code().name
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY:
            record = json.loads(value)
            kind = error_of_kind(record["class"], _class_of_code(error.code()))
            return kind(message, field=record["field"], retry_after_s=record["retry_after_s"])
    if error.code() == grpc.StatusCode.UNAVAILABLE and message.endswith("Socket closed"):
        # With TLS 1.3 a caller is connected before the server has seen its certificate, and learns no reason.
        message += "; a peer with TLS ends so if it does not accept our certificate, or if we show none"
    return _class_of_code(error.code())(message)


def error_of_kind(name: str, otherwise: type[MoonshardError] = MoonshardError) -> type[MoonshardError]:
    """Return the class of this name, or another one where there is none."""
    return _classes().get(name, otherwise)


def _classes() -> dict[str, type[MoonshardError]]:
    def below(kind: type[MoonshardError]) -> Iterator[type[MoonshardError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    return {kind.__name__: kind for kind in below(MoonshardError)}


def _class_of_code(code: grpc.StatusCode) -> type[MoonshardError]:
    return {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.CANCELLED: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.UNIMPLEMENTED: WireError,
    }.get(code, MoonshardError)
