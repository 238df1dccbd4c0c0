"""Traces: what one request did in which process, sent to an OpenTelemetry collector.

Off unless an endpoint is set, and then nothing of OpenTelemetry is imported. Who begins a trace decides whether it is
recorded; everybody else obeys the flag in the traceparent (W3C) that travels with every call. Parents are passed on as
that text, since our work moves between loops and threads, where an ambient context would be lost.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final, Literal, Protocol, TypeAlias

Attributes: TypeAlias = Mapping[str, str | int | float | bool | Sequence[str]]
Kind: TypeAlias = Literal["internal", "server", "client"]

PARENT: Final[ContextVar[str]] = ContextVar("moonshard_trace_parent", default="")
"""Of what a gRPC handler does: the traceparent of its call, or of the call's own span."""


class Span(Protocol):
    """Something that takes time. Ends with the block that began it."""

    @property
    def trace_parent(self) -> str:
        """What makes others children of this span."""

    def set(self, attributes: Attributes) -> None:
        """More of what is known about it."""


class Tracer(Protocol):
    """Records spans of traces that are recorded, and passes the others by. May be used from any thread."""

    def span(
        self, name: str, parent: str, attributes: Attributes | None = None, kind: Kind = "internal"
    ) -> AbstractContextManager[Span]:
        """A span around a block. An exception is recorded by its class alone: its text may hold what a user wrote.

        parent  a traceparent; empty: the span begins a trace that is recorded
        """

    def record(
        self, name: str, parent: str, began_s: float, ended_s: float, attributes: Attributes | None = None
    ) -> None:
        """A span that is over; times of time.monotonic."""

    async def close(self) -> None:
        """Send what is left, within seconds."""


def is_recorded(trace_parent: str) -> bool:
    """Whether the trace is one that its beginner has recorded."""
    return len(trace_parent) > 2 and int(trace_parent[-2:], 16) & 1 == 1


def open_tracer(endpoint: str, service: str, instance: str = "") -> Tracer | None:
    """A tracer that sends to an OTLP/HTTP endpoint; None if that is empty."""
    if not endpoint:
        return None
    # Only here, so that tracing costs nothing, not even memory, where it is off.
    from services.runtime.otlp import OtlpTracer  # noqa: PLC0415

    return OtlpTracer(endpoint, service, instance)
