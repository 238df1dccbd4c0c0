"""What one request carries into every call that is made for it: its names and its deadline."""

import time
from dataclasses import dataclass, field

from gateway.first_token import FirstToken
from services.runtime.channels import call_metadata
from services.runtime.errors import DeadlineExceeded, MoonshardError, Unavailable, WireError

Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Meter:
    """Tokens that a request used. Its run adds them at its end."""

    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Both together."""
        return self.num_prompt_tokens + self.num_completion_tokens


@dataclass(frozen=True, slots=True)
class CallContext:
    """Request id, trace parent (W3C) and deadline. Times are of time.monotonic."""

    request_id: str
    trace_parent: str
    arrived_s: float
    deadline_s: float
    meter: Meter = field(default_factory=Meter)
    first_token: FirstToken = field(default_factory=FirstToken)

    @property
    def trace_id(self) -> str:
        """The id under which the whole request is traced."""
        return self.trace_parent.split("-")[1]

    @property
    def metadata(self) -> Metadata:
        """The metadata of every gRPC call of this request."""
        return call_metadata(self.request_id, trace_parent=self.trace_parent)

    def left_s(self, at_most_s: float) -> float:
        """Time until the deadline, but not more than at_most_s. Raises DeadlineExceeded if none is left."""
        left = self.deadline_s - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline of the request has passed")
        return min(left, at_most_s)


def is_loss(error: MoonshardError) -> bool:
    """Whether the call may succeed on another replica: this one is gone, stuck, of another version or broken.

    A full queue is not a loss, and neither is a request or a model that is wrong everywhere.
    """
    return isinstance(error, Unavailable | DeadlineExceeded | WireError) or type(error) is MoonshardError
