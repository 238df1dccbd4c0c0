"""Every kind of error as the Anthropic dialect calls it."""

import pytest

from gateway.http import errors
from gateway.http.dialect import dialect_of, is_anthropic
from services.runtime.errors import (
    DeadlineExceeded,
    ExpertsUnavailable,
    InvalidRequest,
    MoonshardError,
    NotFound,
    NumericError,
    Overloaded,
    RequestTooLarge,
    Unavailable,
)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x", field="a"), 400, "invalid_request_error"),
        (errors.ContextExceeded(9, 5), 400, "invalid_request_error"),
        (errors.MethodNotAllowed("x", "POST"), 405, "invalid_request_error"),
        (errors.InvalidKey("x"), 401, "authentication_error"),
        (errors.ModelNotFound("x"), 404, "not_found_error"),
        (NotFound("x"), 404, "not_found_error"),
        (errors.BodyTooLarge("x"), 413, "request_too_large"),
        (RequestTooLarge("x", field="messages"), 413, "request_too_large"),
        (errors.BodyTooSlow("x"), 408, "invalid_request_error"),
        (errors.HeadersTooLarge("x"), 431, "invalid_request_error"),
        (errors.RateLimited("x", {}, retry_after_s=2), 429, "rate_limit_error"),
        (Overloaded("x"), 529, "overloaded_error"),
        (Unavailable("x"), 529, "overloaded_error"),
        (ExpertsUnavailable("x"), 529, "overloaded_error"),
        (NumericError("x"), 500, "api_error"),
        (MoonshardError("x"), 500, "api_error"),
        (DeadlineExceeded("x"), 504, "timeout_error"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_and_statuses(error, status, kind):
    assert errors.anthropic_status(error) == status
    body = errors.anthropic_error(error)
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"]


def test_words_that_clients_look_for():
    error = errors.ContextExceeded(300000, 262144)
    message = errors.openai_error(error)["error"]["message"]
    for words in (
        "This model's maximum context length is 262144 tokens",
        "context_length_exceeded",
        "Invalid request: Your request exceeded model token limit: 262144 (requested: 300000)",
    ):
        assert words in message
    of_anthropic = errors.anthropic_error(error)["error"]["message"]
    assert of_anthropic == f"prompt is too long: 300000 tokens > 262144 maximum. {message}"
    assert "secret" not in str(errors.anthropic_error(NumericError("secret")))


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("failed to connect to all addresses; last error: ipv4:10.1.2.3:50051: refused", "last error: a peer refused"),
        ("no token from 10.1.2.3:50051 for 60 s", "no token from a peer for 60 s"),
        ("no token from [fd00::1]:50051 for 60 s", "no token from a peer for 60 s"),
        ("decode-0.decode.moonshard.svc:50051 ended", "a peer ended"),
        ("unix:/run/moonshard/decode.sock: gone", "a peer gone"),
        ("redis://:secret@redis.moonshard:6379/0 does not answer", "a peer does not answer"),
        ("no decode replica is ready", "no decode replica is ready"),
    ],
)
def test_no_address_from_inside(inside, message):
    for error in (Unavailable(inside), DeadlineExceeded(inside), Overloaded(inside)):
        assert errors.openai_error(error)["error"]["message"].endswith(message)
        assert errors.anthropic_error(error)["error"]["message"].endswith(message)


def test_what_a_client_sent_is_repeated_as_it_is():
    error = InvalidRequest("messages.0: 'http://host:8080/x' cannot be read", field="messages.0")
    assert "http://host:8080/x" in errors.openai_error(error)["error"]["message"]


@pytest.mark.parametrize(
    ("path", "dialect", "anthropic"),
    [
        ("/v1/messages", "messages", True),
        ("/anthropic/v1/messages", "messages", True),
        ("/v1/messages/count_tokens", "count_tokens", True),
        ("/v1/messages/batches", "other", True),
        ("/v1/messages2", "other", False),
        ("/v1/responses", "responses", False),
        ("/v1/chat/completions", "chat", False),
    ],
)
def test_paths(path, dialect, anthropic):
    assert dialect_of(path) == dialect
    assert is_anthropic(path) == anthropic
