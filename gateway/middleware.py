"""What every HTTP request gets: ids, a deadline, headers, a line in the log and a place in the metrics."""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.call import CallContext
from gateway.faces import OTHER, face_of, is_anthropic
from gateway.metrics import REQUEST_SECONDS, REQUESTS

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
LEFT = 499


class RequestMiddleware:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, request_s: float) -> None:
        self.app = app
        self._request_s = request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or passes on what isn't one."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = _call_of(Headers(scope=scope), self._request_s)
        scope["moonshard.call"] = call
        status = LEFT

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = call.request_id
                headers["x-trace-id"] = call.trace_id
                if is_anthropic(scope["path"]):
                    headers["request-id"] = call.request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_ids)
        finally:
            seconds = time.monotonic() - call.arrived_s
            face = face_of(scope["path"])
            REQUESTS.labels(face, str(status)).inc()
            REQUEST_SECONDS.labels(face).observe(seconds)
            if face != OTHER:
                fields = {"request_id": call.request_id, "face": face, "status": status, "seconds": round(seconds, 4)}
                log.info("request", extra=fields)


def _call_of(headers: Headers, request_s: float) -> CallContext:
    now_s = time.monotonic()
    request_id = headers.get("x-request-id", "")
    parent = TRACE_PARENT.fullmatch(headers.get("traceparent", ""))
    trace_id = parent[1] if parent else secrets.token_hex(16)
    return CallContext(
        request_id=request_id if REQUEST_ID.fullmatch(request_id) else f"req-{secrets.token_hex(12)}",
        trace_parent=parent[0] if parent else f"00-{trace_id}-{secrets.token_hex(8)}-01",
        arrived_s=now_s,
        deadline_s=now_s + request_s,
    )
