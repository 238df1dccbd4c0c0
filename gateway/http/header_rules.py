"""Headers that contradict each other: refused by name, because readers would choose differently between them."""

from starlette.datastructures import Headers

from services.runtime.errors import InvalidRequest

# Of one value only. Others are lists, or nothing here reads them.
SINGLE = frozenset(
    {
        *("authorization", "x-api-key", "content-type", "content-encoding", "content-length", "host"),
        *("x-request-id", "traceparent", "x-stainless-timeout", "x-stainless-read-timeout"),
    }
)


def refuse_contradictions(headers: Headers) -> None:
    """InvalidRequest names a header that stands there twice with different values."""
    names = [name for name, _ in headers.raw]
    if len(set(names)) == len(names):
        return
    for name in SINGLE:
        if len(set(headers.getlist(name))) > 1:
            raise InvalidRequest(f"{name}: this header stands there twice, with different values", field=name)


def api_key_of(headers: Headers) -> str | None:
    """Return the key that a client sends. InvalidRequest if it sends two different ones."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    bearer = key.strip() if scheme.lower() == "bearer" else ""
    other = headers.get("x-api-key", "")
    if bearer and other and bearer != other:
        raise InvalidRequest("x-api-key: authorization holds another key", field="x-api-key")
    return bearer or other or None
