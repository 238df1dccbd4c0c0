"""The ids, the deadline and the trace of a request, which travel with every call that is made for it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from gateway.http.first_token import FirstToken
from protos.lanes_pb2 import LaneCall
from services.runtime.channels import call_metadata
from services.runtime.errors import DeadlineExceeded, MoonshardError, Unavailable, WireError
from services.runtime.tracing import Span, Tracer

MAX_FIELD_CHARS = 128

Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Meter:
    """Tokens that a request used, added at its end."""

    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_completion_tokens


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Request id, trace parent (W3C) and deadline. Times are of time.monotonic."""

    request_id: str
    trace_parent: str
    arrived_s: float
    deadline_s: float
    patience_s: float = math.inf  # how long the client waits for a first byte, where it says so
    is_retry: bool | None = None  # whether the client was refused before, where it says so
    meter: Meter = field(default_factory=Meter)
    first_token: FirstToken = field(default_factory=FirstToken)
    owner: str = ""  # the short name of the caller's API key; empty: not known yet, or nobody needs a key
    tracer: Tracer | None = None
    root: Span | None = None  # of the whole request, where there are traces
    ignored: list[str] = field(default_factory=list)  # fields of the body that were accepted without an effect
    refusal: dict[str, str] = field(default_factory=dict)  # for the log: the error and the field of a refusal

    @property
    def trace_id(self) -> str:
        """Return the id of the request's trace."""
        return self.trace_parent.split("-")[1]

    @property
    def metadata(self) -> Metadata:
        """Return the metadata of every gRPC call of this request."""
        return call_metadata(self.request_id, trace_parent=self.trace_parent)

    def note_refusal(self, error: MoonshardError) -> None:
        """Remember the error that the client gets. Its message may repeat what the client wrote, and is left out."""
        self.refusal["error"] = type(error).__name__
        if error.field:
            self.refusal["field"] = error.field[:MAX_FIELD_CHARS]

    def lane_call(self, at_most_s: float) -> LaneCall:
        """Return request id, trace and remaining time for a call in a lane. DeadlineExceeded if no time is left."""
        timeout_s = self.left_s(at_most_s)
        return LaneCall(request_id=self.request_id, traceparent=self.trace_parent, timeout_s=timeout_s)

    @contextmanager
    def span(self, name: str, **attributes: str) -> Iterator["RequestContext"]:
        """Trace a part of the request; yields the context for the calls of this part."""
        if self.tracer is None:
            yield self
            return
        named = {f"moonshard.{key}": value for key, value in attributes.items()}
        with self.tracer.span(name, self.trace_parent, named, "client") as span:
            yield replace(self, trace_parent=span.trace_parent)

    @contextmanager
    def part(self, name: str) -> Iterator["RequestContext"]:
        """Trace a part of the way to the first token, and add its time."""
        with self.first_token.timing(name), self.span(name) as context:
            yield context

    def left_s(self, at_most_s: float) -> float:
        """Return the time until the deadline, at most at_most_s. Raises DeadlineExceeded if none is left."""
        left = self.deadline_s - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline of the request has passed")
        return min(left, at_most_s)


def is_loss(error: MoonshardError) -> bool:
    """Return whether the call may succeed on another replica: this one is gone, stuck, of another version or broken.

    A full queue is not a loss, and neither is a request or a model that is wrong everywhere.
    """
    return isinstance(error, Unavailable | DeadlineExceeded | WireError) or type(error) is MoonshardError
