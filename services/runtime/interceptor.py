"""The interceptor of all handlers: turns errors into status codes, measures each call and logs a line."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio

from services.runtime.channels import request_id, trace_parent
from services.runtime.errors import MAX_MESSAGE_BYTES, MoonshardError, error_to_metadata
from services.runtime.lanes.records import LANES, LaneRecords, call_span, count_call
from services.runtime.metrics import RPCS_RUNNING
from services.runtime.tracing import PARENT, Tracer

# Only the stubs of grpc know these as generic.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Filter gRPC's own log: a reply that cannot be sent is not an error, because its client has left."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


logging.getLogger("grpc._cython.cygrpc").addFilter(is_worth_a_line)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Handles failures of all handlers, which only decode, call, encode and raise."""

    def __init__(self, log: logging.Logger, tracer: Tracer | None = None) -> None:
        self._log = log
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers
            return None
        kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
        wrap = self._wrap_stream if handler.response_streaming else self._wrap_unary
        wrapped = wrap(handler_call_details.method, getattr(handler, kind))
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return cast(Handler, make(wrapped, handler.request_deserializer, handler.response_serializer))

    def _wrap_unary(self, method: str, handler: Any) -> Any:
        assert inspect.iscoroutinefunction(handler), f"{method} is not async"

        async def call(request: Any, context: Context) -> Any:
            async with self._call(method, context):
                return await handler(request, context)

        return call

    def _wrap_stream(self, method: str, handler: Any) -> Any:
        if inspect.iscoroutinefunction(handler):  # it writes to the context
            return self._wrap_unary(method, handler)
        assert inspect.isasyncgenfunction(handler), f"{method} is not async"

        # A coroutine instead of a generator, so that a handler is closed at once when its client leaves.
        async def call(request: Any, context: Context) -> None:
            async with self._call(method, context), aclosing(handler(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

        return call

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        start = time.perf_counter()
        code = grpc.StatusCode.OK
        caller, parent = request_id(context), trace_parent(context)
        RPCS_RUNNING.labels(method).inc()
        try:
            with call_span(self._tracer, method, caller, parent) as of_handler:
                PARENT.set(of_handler)
                LANES.set(LaneRecords(self._log, self._tracer, method))
                yield
        except MoonshardError as error:
            code = error.code
            if code == grpc.StatusCode.INTERNAL:
                self._log.exception("%s failed", method, extra={"request_id": caller})
            await context.abort(code, _details(error), error_to_metadata(error))
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The handler's own wait was cancelled, not the call; without an answer the client would hang.
            code = grpc.StatusCode.UNAVAILABLE
            await context.abort(code, "the work was cancelled")
        except grpc.aio.BaseError:  # gRPC's own: the client is gone, or the server was stopped
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:  # noqa: BLE001
            code = grpc.StatusCode.INTERNAL
            self._log.exception("%s failed", method, extra={"request_id": caller})
            await context.abort(code, "internal error")
        finally:
            count_call(self._log, method, caller, parent, code, time.perf_counter() - start)


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _details(error: MoonshardError) -> str:
    return error.message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")
