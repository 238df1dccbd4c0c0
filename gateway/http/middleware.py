"""Ids, a deadline, headers, a log line and metrics for every HTTP request."""

import logging
import math
import random
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.dialect import OTHER, dialect_of, is_anthropic
from gateway.http.request_context import RequestContext
from gateway.metrics import REQUEST_SECONDS, REQUESTS
from services.runtime.channels import TRACE_PARENT_FORM
from services.runtime.tracing import Tracer, is_recorded

log = logging.getLogger(__name__)

# Of the SDKs of OpenAI and Anthropic, in seconds: for Python, for JavaScript.
PATIENCE = ("x-stainless-read-timeout", "x-stainless-timeout")
RETRIES = "x-stainless-retry-count"
PATIENCE_FORM = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
LEFT = 499
ID = "moonshard.request_id"
IGNORED = "x-moonshard-ignored"
MAX_IGNORED = 16
MAX_NAME_CHARS = 64
NOT_IN_A_HEADER = re.compile(r"[^\x21-\x2b\x2d-\x7e]")  # nor the comma, which separates


class RequestMiddleware:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, request_s: float, tracer: Tracer | None = None, sample_ratio: float = 0.0) -> None:
        self.app = app
        self._request_s = request_s
        self._tracer = tracer
        self._sample_ratio = sample_ratio

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass on what is none."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A slash at the end changes nothing. A redirect would, since clients follow it without the body.
        scope["path"] = scope["path"].rstrip("/") or "/"
        context = _context_of(Headers(scope=scope), self._request_s, self._sample_ratio)
        dialect = dialect_of(scope["path"])
        if self._tracer is None or dialect == OTHER or not is_recorded(context.trace_parent):
            await self._serve(scope, receive, send, context)
            return
        parent = context.trace_parent if context.trace_parent == Headers(scope=scope).get("traceparent") else ""
        attributes = {"http.request.method": scope["method"], "moonshard.dialect": dialect, ID: context.request_id}
        with self._tracer.span(dialect, parent, attributes, "server") as span:
            traced = replace(context, trace_parent=span.trace_parent, tracer=self._tracer, root=span)
            await self._serve(scope, receive, send, traced)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        scope["moonshard.context"] = context
        status = LEFT

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if context.root is not None:
                    context.root.set({"http.response.status_code": status})
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = context.request_id
                headers["x-trace-id"] = context.trace_id
                if is_anthropic(scope["path"]):
                    headers["request-id"] = context.request_id
                if context.ignored:
                    headers[IGNORED] = _ignored(context.ignored)
            await send(message)

        try:
            await self.app(scope, receive, send_with_ids)
        finally:
            seconds = time.monotonic() - context.arrived_s
            dialect = dialect_of(scope["path"])
            REQUESTS.labels(dialect, str(status)).inc()
            REQUEST_SECONDS.labels(dialect).observe(seconds)
            if dialect != OTHER:
                fields = {
                    "request_id": context.request_id,
                    "trace_id": context.trace_id,
                    "dialect": dialect,
                    "status": status,
                    **context.refusal,
                }
                log.info("request", extra={**fields, "seconds": round(seconds, 4)})


def _ignored(names: Sequence[str]) -> str:
    """The names of ignored fields for a header, the first of them if there are many."""
    return ", ".join(NOT_IN_A_HEADER.sub("?", name[:MAX_NAME_CHARS]) for name in names[:MAX_IGNORED])


def _context_of(headers: Headers, request_s: float, sample_ratio: float) -> RequestContext:
    now_s = time.monotonic()
    request_id = headers.get("x-request-id", "")
    parent = headers.get("traceparent", "")
    if not TRACE_PARENT_FORM.fullmatch(parent):
        flags = "01" if random.random() < sample_ratio else "00"
        parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{flags}"
    return RequestContext(
        request_id=request_id if REQUEST_ID.fullmatch(request_id) else f"req-{secrets.token_hex(12)}",
        trace_parent=parent,
        arrived_s=now_s,
        deadline_s=now_s + request_s,
        patience_s=_patience_of(headers),
        is_retry=headers[RETRIES] != "0" if RETRIES in headers else None,
    )


def _patience_of(headers: Headers) -> float:
    said = [headers[name] for name in PATIENCE if name in headers]
    return min((float(text) for text in said if PATIENCE_FORM.fullmatch(text)), default=math.inf)
