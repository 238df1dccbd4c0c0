"""Authentication and limits of keys, in front of every endpoint that does work."""

from collections.abc import Iterable
from dataclasses import replace

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.body_budget import LEASE, BodyBudget
from gateway.http.dialect import dialect_of, error_response
from gateway.http.header_rules import api_key_of, refuse_contradictions
from gateway.http.key_usage import KeyUsage
from gateway.http.keys import ApiKeys
from gateway.http.limits import KeyLimits
from gateway.http.request_context import RequestContext
from services.runtime.errors import MoonshardError

# What says nothing about users or load, and what a load balancer asks.
OPEN_PATHS = frozenset({"/", "/live", "/health", "/ping", "/version"})
LIMITED = frozenset({"chat", "completions", "messages", "responses"})


class Guard:
    """Checks the API key of a request, then the limits of the key, and lets the key pay for the tokens."""

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, limits: KeyLimits, bodies: BodyBudget, open_paths: Iterable[str]
    ) -> None:
        self.app = app
        self._open_paths = OPEN_PATHS.union(open_paths)
        self._bodies = bodies
        self._keys = keys
        self._limits = limits
        self._usage = KeyUsage()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it in the form of its dialect."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self.app(scope, receive, send)
            return
        context: RequestContext = scope["moonshard.context"]
        limited = scope["method"] == "POST" and dialect_of(scope["path"]) in LIMITED
        try:
            headers = Headers(scope=scope)
            refuse_contradictions(headers)
            needs_key = self._keys.are_needed
            owner = scope["moonshard.owner"] = self._keys.owner_of(api_key_of(headers) if needs_key else None)
            scope["moonshard.context"] = replace(context, owner=owner if needs_key else "")
            limits = await self._limits.admit(owner) if limited else {}
        except MoonshardError as error:
            context.note_refusal(error)
            await error_response(error, scope["path"], context.request_id)(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(limits)
            await send(message)

        try:
            with self._bodies.lease(owner) as scope[LEASE]:
                await self.app(scope, receive, send_with_limits)
        finally:
            if limited:
                self._usage.count(owner, context.meter)
                await self._limits.pay(owner, context.meter.num_tokens)
