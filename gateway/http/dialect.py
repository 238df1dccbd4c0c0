"""The dialect of a path: its name in logs and metrics, and the form of its errors."""

import orjson
from starlette.responses import Response

from gateway.http.errors import anthropic_error, anthropic_status, error_headers, openai_error, status_of
from gateway.http.sse import DONE, data_event, named_event
from services.runtime.errors import MoonshardError

OTHER = "other"
DIALECTS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/anthropic/v1/messages": "messages",
    "/anthropic/v1/messages/count_tokens": "count_tokens",
    "/v1/responses": "responses",
    "/v1/models": "models",
}
ANTHROPIC = ("/v1/messages/", "/anthropic/")


def dialect_of(path: str) -> str:
    """Return the short name of a path's dialect."""
    return DIALECTS.get(path, OTHER)


def is_anthropic(path: str) -> bool:
    """Return whether a path is of Anthropic's dialect."""
    return f"{path}/".startswith(ANTHROPIC)


def error_response(error: MoonshardError, path: str, request_id: str) -> Response:
    """Return an error in the form of the path's dialect."""
    if is_anthropic(path):
        status, body = anthropic_status(error), {**anthropic_error(error), "request_id": request_id}
    else:
        status, body = status_of(error), openai_error(error)
    return Response(orjson.dumps(body), status_code=status, headers=error_headers(error), media_type="application/json")


def error_events(error: MoonshardError, path: str) -> bytes:
    """Return a whole event stream that has this error alone, in the form of the path's dialect."""
    if is_anthropic(path):
        return named_event("error", orjson.dumps(anthropic_error(error)))
    body = openai_error(error)
    if dialect_of(path) == "responses":
        fields = {name: body["error"][name] for name in ("code", "message", "param")}
        return named_event("error", orjson.dumps({"type": "error", "sequence_number": 0, **fields}))
    return data_event(orjson.dumps(body)) + DONE
