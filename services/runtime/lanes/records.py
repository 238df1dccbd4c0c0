"""What every call leaves behind, whether it has a stream of its own or a lane of one: a figure, a line, a span."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Final

import grpc

from protos.lanes_pb2 import LaneCall
from services.runtime.channels import TRACE_PARENT_FORM
from services.runtime.errors import MoonshardError
from services.runtime.metrics import RPC_SECONDS, RPCS_RUNNING
from services.runtime.tracing import Tracer


def count_call(
    log: logging.Logger, method: str, request_id: str, parent: str, code: grpc.StatusCode, seconds: float
) -> None:
    """Count a call that is over. Calls of a request and failures are logged at level info, polls at level debug."""
    RPCS_RUNNING.labels(method).dec()
    RPC_SECONDS.labels(method, code.name).observe(seconds)
    usual = code in {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    level = logging.DEBUG if usual and not request_id else logging.INFO
    if log.isEnabledFor(level):
        fields = {
            "request_id": request_id,
            "trace_id": parent[3:35],
            "method": method,
            "code": code.name,
            "seconds": round(seconds, 6),
        }
        log.log(level, "call", extra=fields)


@contextmanager
def call_span(tracer: Tracer | None, method: str, request_id: str, parent: str) -> Iterator[str]:
    """Trace the block as a call, if its trace is recorded here; yields what its handler's spans are under."""
    if tracer is None or not parent:
        yield parent
        return
    names = dict(zip(("rpc.service", "rpc.method"), method.removeprefix("/").split("/", 1), strict=True))
    attributes = {"rpc.system": "grpc", **names, "moonshard.request_id": request_id}
    with tracer.span(method.removeprefix("/"), parent, attributes, "server") as span:
        yield span.trace_parent


class LaneRecord:
    """The record of the call in one lane, from its start to `end`. `trace_parent`: what its spans are under."""

    def __init__(self, log: logging.Logger, tracer: Tracer | None, method: str, call: LaneCall) -> None:
        self._log = log
        self._method = method
        self._request_id = call.request_id
        self._parent = call.traceparent if TRACE_PARENT_FORM.fullmatch(call.traceparent) else ""
        self._began_s = time.perf_counter()
        self._span = ExitStack()
        self.trace_parent = self._span.enter_context(call_span(tracer, method, self._request_id, self._parent))
        RPCS_RUNNING.labels(method).inc()

    def end(self, code: grpc.StatusCode, error: BaseException | None = None) -> None:
        """End the record. An error of ours is logged with its stack."""
        if code == grpc.StatusCode.INTERNAL:
            self._log.error("%s failed", self._method, extra={"request_id": self._request_id}, exc_info=error)
        self._span.__exit__(type(error) if error is not None else None, error, None)
        count_call(self._log, self._method, self._request_id, self._parent, code, time.perf_counter() - self._began_s)

    def fail(self, error: Exception) -> MoonshardError:
        """End the record by an error; return what the caller gets of it."""
        known = error if isinstance(error, MoonshardError) else MoonshardError("internal error")
        self.end(known.code, error)
        return known


class LaneRecords:
    """Makes the records of the lanes of one stream."""

    def __init__(self, log: logging.Logger, tracer: Tracer | None, method: str) -> None:
        self._log = log
        self._tracer = tracer
        self._method = method

    def begin(self, call: LaneCall) -> LaneRecord:
        """Begin the record of a call."""
        return LaneRecord(self._log, self._tracer, self._method, call)


LANES: Final[ContextVar[LaneRecords]] = ContextVar("moonshard_lanes")
"""Set for every gRPC handler: the records of its lanes, if its stream carries some."""
