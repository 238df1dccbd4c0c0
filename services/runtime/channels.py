"""Channels to other processes, which notice a lost peer quickly, reconnect quickly, and raise our own errors."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.errors import MoonshardError, Unavailable, error_from_rpc
from services.runtime.tls import TlsFiles, Watch, channel_credentials

REQUEST_ID = "x-request-id"
TRACE_PARENT = "traceparent"
TRACE_PARENT_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
WATCH_RETRY_S = 0.1
STATUS_S = 5.0

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    # A peer that hangs or whose host is gone is noticed within 20 s, also on an idle stream. The keepalive timeout does
    # not suffice, because during another ping the timeout of that ping counts, by default 60 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A peer that was restarted is found within about a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # despite its name the time limit of one attempt to connect
    # Two channels to one address use separate connections, so that one can fail without the other.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str, *, tls: TlsFiles | None = None, **options: int | str) -> grpc.aio.Channel:
    """Return a channel whose calls raise the same classes of `MoonshardError` as the server.

    Our own cancellation stays asyncio.CancelledError, and cancelling a pending read or write ends its call, as in
    grpc.aio. Write streams with `write`: an exception in a request iterator would look like a cancellation.

    address  "host:port" or "unix:/path"; nothing is connected before the first call
    tls      certificates for everything but Unix sockets; calls that begin after they have changed use the new ones
    options  further channel arguments, dots written as two underscores
    """
    further = {name.replace("__", "."): value for name, value in options.items()}
    arguments = [*(dict(CHANNEL_OPTIONS) | further).items()]
    if tls is None or address.startswith("unix:"):
        return _Channel(grpc.aio.insecure_channel(address, arguments), address)
    return _TlsChannel(tls, address, [*arguments, *tls.channel_options()])


def call_metadata(request_id: str, *, trace_parent: str = "") -> tuple[tuple[str, str], ...]:
    """Return the metadata of every call for a request; the deadline travels as the call's timeout."""
    metadata = ((REQUEST_ID, request_id), (TRACE_PARENT, trace_parent))
    return tuple((key, value) for key, value in metadata if value)


def request_id(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Return the id of a call's request; empty for calls without one, such as health checks."""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == REQUEST_ID), "")


def trace_parent(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Return the traceparent (W3C) of a call's request; empty if there is none or it is malformed."""
    found = next((str(value) for key, value in context.invocation_metadata() or () if key == TRACE_PARENT), "")
    return found if TRACE_PARENT_FORM.fullmatch(found) else ""


async def watch_health(channel: grpc.aio.Channel, service: str = "") -> AsyncGenerator[bool]:
    """Yield whether the peer serves, now and after every change, endlessly. An unreachable peer does not serve."""
    last: bool | None = None
    while True:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        try:
            with suppress(MoonshardError):
                async for response in watch:
                    serving = response.status == health_pb2.HealthCheckResponse.SERVING
                    if serving != last:
                        yield serving
                    last = serving
        finally:
            watch.cancel()
        if last is not False:
            yield False
        last = False
        await asyncio.sleep(WATCH_RETRY_S)


async def wait_ready(channel: grpc.aio.Channel, timeout_s: float, service: str = "") -> None:
    """Return as soon as the peer serves. Raises `Unavailable` after the timeout."""
    watch = watch_health(channel, service)
    try:
        async with asyncio.timeout(timeout_s):
            async for serving in watch:
                if serving:
                    return
    except TimeoutError:
        raise Unavailable(f"{channel} does not serve after {timeout_s:g} s") from None
    finally:
        await watch.aclose()


class _Channel(grpc.aio.Channel):
    """A channel of grpc.aio whose calls are `_Call`s. (Its interceptors cost a task and a queue per call.)"""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._channel = channel
        self._address = address

    def __str__(self) -> str:
        return self._address

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _calls(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _calls(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _calls(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _calls(self._channel.stream_stream(*args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()


class _TlsChannel(_Channel):
    """A channel that reconnects after our certificates have changed.

    Running calls keep their connection, which is closed after the last of them.
    """

    def __init__(self, tls: TlsFiles, address: str, arguments: Sequence[tuple[str, int | str]]) -> None:
        self._tls = tls
        self._arguments = arguments
        self._watch = Watch(tls)
        super().__init__(self._connect(address), address)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        self._renew()
        return super().unary_unary(*args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        self._renew()
        return super().unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        self._renew()
        return super().stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        self._renew()
        return super().stream_stream(*args, **kwargs)

    def _renew(self) -> None:
        if self._watch.changed():
            self._channel = self._connect(self._address)

    def _connect(self, address: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, channel_credentials(self._tls), self._arguments)


def _calls(start: Callable[..., Any]) -> Callable[..., "_Call"]:
    return lambda *args, **kwargs: _Call(start(*args, **kwargs))


class _Call:
    """A call of grpc.aio, of any of the four kinds, that raises `MoonshardError`."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._messages: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    def __aiter__(self) -> Self:
        self._messages = self._call.__aiter__()
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._messages.__anext__()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def read(self) -> Any:
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def write(self, request: Any) -> None:
        # Not by grpc.aio's write: if a call ends while a message is being sent, that replaces the status by its own
        # error, and a refusal looks like a defect.
        call = self._call
        try:
            await self.wait_for_connection()
            serialize = call._request_serializer
            await call._cython_call.send_serialized_message(serialize(request) if serialize else request)
        except grpc.aio.InternalError:
            raise await self._ended() from None
        except asyncio.CancelledError:
            call.cancel()
            raise

    async def done_writing(self) -> None:
        try:
            await self._call.done_writing()
        except grpc.aio.InternalError:
            raise await self._ended() from None
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def wait_for_connection(self) -> None:
        try:
            await self._call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def _ended(self) -> MoonshardError:
        """Return the error of a call to which nothing can be written; its status is available at once."""
        try:
            async with asyncio.timeout(STATUS_S):
                code = await self._call.code()
                trailing = await self._call.trailing_metadata()
                details = await self._call.details()
        except TimeoutError:
            return Unavailable("the connection broke while a message was sent")
        if code == grpc.StatusCode.OK:
            return Unavailable("the peer ended the stream")
        return error_from_rpc(grpc.aio.AioRpcError(code, None, trailing, details=details))
