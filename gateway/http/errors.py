"""Errors in HTTP: the gateway's own classes, and the status and body of every error in each dialect."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from services.runtime.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MoonshardError,
    NotFound,
    Overloaded,
    RequestTooLarge,
)

DEFAULT_RETRY_S = 1.0
# As messages write them: ipv4:10.0.0.1:50051, unix:/run/x, redis://host:6379/0, [::1]:50051, host:50051.
ADDRESS = re.compile(r"(?:\b(?:ipv4|ipv6|unix|dns|rediss?|https?):\S+|\[[0-9A-Fa-f:.%]+\]:\d+|\b[\w.-]+:\d{2,5}\b)")


class ContextExceeded(InvalidRequest):
    """The prompt alone fills the context. The client must shorten it."""

    def __init__(self, num_tokens: int, context_tokens: int) -> None:
        # Clients recognise these words and shorten their history: the first sentence LiteLLM and LangChain, the code
        # those that see no more than the message, the last Kimi's.
        super().__init__(
            f"This model's maximum context length is {context_tokens} tokens, and the prompt has {num_tokens} "
            f"(context_length_exceeded). "
            f"Invalid request: Your request exceeded model token limit: {context_tokens} (requested: {num_tokens})"
        )
        self.num_tokens = num_tokens
        self.context_tokens = context_tokens


class BodyTooLarge(RequestTooLarge):
    """The body is over the limit. The client must send less."""


class BodyTooSlow(InvalidRequest):
    """The body did not come in time. The client may send it again."""


class HeadTooSlow(InvalidRequest):
    """The headers did not come in time. The client may send the request again."""


class HeadersTooLarge(InvalidRequest):
    """The headers are over their limit. The client must send fewer, or shorter ones."""


class ModelNotFound(NotFound):
    """No model of that name is served here."""


class MethodNotAllowed(InvalidRequest):
    """The path exists, the method does not. `allow` lists those that do."""

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class MediaLost(MoonshardError):
    """Features of images leave the store faster than engines read them. No other engine would help; try later."""

    code = grpc.StatusCode.UNAVAILABLE


class InvalidKey(MoonshardError):
    """The API key is missing or unknown. Send a valid one."""

    code = grpc.StatusCode.UNAUTHENTICATED


class RateLimited(MoonshardError):
    """The key has used up its share of the minute. Try again after `retry_after_s`; `headers` say what is left."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, headers: Mapping[str, str], *, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


class ClientGone(MoonshardError):
    """The client left; the answer has no reader."""

    code = grpc.StatusCode.CANCELLED


@dataclass(frozen=True, slots=True)
class _Rule:
    status: int
    type: str
    code: str | None
    retry: bool = False  # whether the same request may succeed later


_INVALID = _Rule(400, "invalid_request_error", None)
_INTERNAL = _Rule(500, "server_error", None)

# The first class that fits.
_BY_CLASS: tuple[tuple[type[MoonshardError], _Rule], ...] = (
    (ContextExceeded, _Rule(400, "invalid_request_error", "context_length_exceeded")),
    (RequestTooLarge, _Rule(413, "invalid_request_error", "request_too_large")),
    (BodyTooSlow, _Rule(408, "invalid_request_error", "request_timeout")),
    (HeadTooSlow, _Rule(408, "invalid_request_error", "request_timeout")),
    (HeadersTooLarge, _Rule(431, "invalid_request_error", "headers_too_large")),
    (MethodNotAllowed, _Rule(405, "invalid_request_error", "method_not_allowed")),
    (InvalidRequest, _INVALID),
    (ModelNotFound, _Rule(404, "resource_not_found_error", "model_not_found")),
    (NotFound, _Rule(404, "resource_not_found_error", None)),
    (Overloaded, _Rule(429, "engine_overloaded_error", "engine_overloaded", retry=True)),
    (DeadlineExceeded, _Rule(504, "timeout_error", None)),
    (InvalidKey, _Rule(401, "invalid_authentication_error", "invalid_api_key")),
    (RateLimited, _Rule(429, "rate_limit_reached_error", "rate_limit_exceeded", retry=True)),
    (ClientGone, _Rule(499, "client_closed_request", None)),
)
_UNAVAILABLE = _Rule(503, "server_unavailable", None, retry=True)


# What Anthropic calls an error: by the name above where that says more than the status, else by the status.
_ANTHROPIC_BY_TYPE = {
    "engine_overloaded_error": (529, "overloaded_error"),
    "server_unavailable": (529, "overloaded_error"),
    "exceeded_current_quota_error": (402, "billing_error"),
}
_ANTHROPIC_BY_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def _rule_of(error: MoonshardError) -> _Rule:
    for kind, rule in _BY_CLASS:
        if isinstance(error, kind):
            return rule
    return _UNAVAILABLE if error.code is grpc.StatusCode.UNAVAILABLE else _INTERNAL


def status_of(error: MoonshardError) -> int:
    """Return the HTTP status of an error."""
    return _rule_of(error).status


def openai_error(error: MoonshardError) -> dict[str, Any]:
    """Return the body of an error on the OpenAI dialects, in JSON answers and in streams alike."""
    rule = _rule_of(error)
    return {
        "error": {"message": _message_of(error), "type": rule.type, "param": _dotted(error.field), "code": rule.code}
    }


def anthropic_status(error: MoonshardError) -> int:
    """Return the HTTP status of an error on the Anthropic dialect."""
    return _anthropic(error)[0]


def anthropic_error(error: MoonshardError) -> dict[str, Any]:
    """Return the body of an error on the Anthropic dialect, without the request's id, which only JSON answers have."""
    message = _message_of(error)
    if isinstance(error, ContextExceeded):
        # Clients of this dialect look for other words first.
        message = f"prompt is too long: {error.num_tokens} tokens > {error.context_tokens} maximum. {message}"
    return {"type": "error", "error": {"type": _anthropic(error)[1], "message": message}}


def _anthropic(error: MoonshardError) -> tuple[int, str]:
    rule = _rule_of(error)
    default = "invalid_request_error" if rule.status < 500 else "api_error"
    by_status = rule.status, _ANTHROPIC_BY_STATUS.get(rule.status, default)
    return _ANTHROPIC_BY_TYPE.get(rule.type, by_status)


def _message_of(error: MoonshardError) -> str:
    """Return the message for the client: nothing of our own mistakes, and no address from inside."""
    rule = _rule_of(error)
    if rule is _INTERNAL:
        return "the server failed to answer this request"
    # What a client sent is repeated as it is.
    return ADDRESS.sub("a peer", error.message) if rule.retry or rule.status >= 500 else error.message


def _dotted(field: str | None) -> str | None:
    """Return `messages.0.role` for what a service calls `messages[0].role`."""
    return field and field.replace("[", ".").replace("]", "")


def error_headers(error: MoonshardError) -> dict[str, str]:
    """Return headers that say whether and when to retry, and what is possible instead."""
    rule = _rule_of(error)
    headers = {"allow": error.allow} if isinstance(error, MethodNotAllowed) else {}
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = 'Bearer realm="moonshard"'
    if isinstance(error, RateLimited):
        headers |= error.headers
    if rule.retry:
        wait_s = error.retry_after_s if error.retry_after_s is not None else DEFAULT_RETRY_S
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
    elif rule.status in (500, 504):
        headers["x-should-retry"] = "false"
    return headers
