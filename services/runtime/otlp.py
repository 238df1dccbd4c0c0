"""The tracer over OpenTelemetry's SDK: a thread sends spans in batches, and drops spans if it lags behind."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from services.runtime.tracing import Attributes, Kind, Span, is_recorded

EXPORT_S = 5.0
CLOSE_S = 5.0
KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}


@dataclass(frozen=True)
class Unrecorded:
    """A span of a trace that is not recorded; its children get its parent."""

    trace_parent: str

    def set(self, attributes: Attributes) -> None:
        """No-op: the trace is not sampled."""


@dataclass(frozen=True)
class Recorded:
    span: trace.Span

    @property
    def trace_parent(self) -> str:
        """Return the parent for child spans."""
        context = self.span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        self.span.set_attributes(attributes)


class OtlpTracer:
    def __init__(self, endpoint: str, service: str, instance: str) -> None:
        names = {"service.name": f"moonshard-{service}", "service.version": version("moonshard")}
        resource = Resource.create(names | ({"service.instance.id": instance} if instance else {}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint, timeout=EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("moonshard")

    @contextmanager
    def span(
        self, name: str, parent: str, attributes: Attributes | None = None, kind: Kind = "internal"
    ) -> Iterator[Span]:
        """Record a span around a block."""
        if parent and not is_recorded(parent):
            yield Unrecorded(parent)
            return
        span = self._tracer.start_span(name, _context(parent), KINDS[kind], attributes)
        try:
            yield Recorded(span)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError | GeneratorExit):
                span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.end()

    def record(
        self, name: str, parent: str, began_s: float, ended_s: float, attributes: Attributes | None = None
    ) -> None:
        """Record a span that has ended."""
        if not is_recorded(parent):
            return
        offset_ns = time.time_ns() - time.monotonic_ns()
        began_ns, ended_ns = (int(at_s * 1e9) + offset_ns for at_s in (began_s, ended_s))
        self._tracer.start_span(name, _context(parent), SpanKind.INTERNAL, attributes, start_time=began_ns).end(
            ended_ns
        )

    async def close(self) -> None:
        """Send the remaining spans, unless the collector does not answer."""
        try:
            await asyncio.wait_for(asyncio.to_thread(self._provider.shutdown), CLOSE_S)
        except TimeoutError:
            return


def _context(parent: str) -> Context:
    """Convert a traceparent to the SDK's form."""
    if not parent:
        return Context()
    _, trace_id, span_id, flags = parent.split("-")
    remote = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(NonRecordingSpan(remote), Context())
