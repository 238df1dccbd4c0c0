"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.body import read_object
from gateway.chat.answer import AnswerHead, ChunkWriter, whole_answer
from gateway.chat.request import ChatRequest, parse_chat
from gateway.chat.schema import ChatCompletionRequest
from gateway.context import Gateway, call_context, gateway_of
from gateway.errors import openai_error
from gateway.internal import Event, assemble
from gateway.metrics import OPEN_STREAMS
from gateway.openapi import json_body
from gateway.run import Run
from gateway.sse import DONE, KEEP_ALIVE, EventStream, data_event, until_gone
from services.runtime.errors import MoonshardError

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    response_model=None,
    openapi_extra=json_body(ChatCompletionRequest),
    summary="Answers a conversation.",
)
async def chat_completions(request: Request) -> Response:
    """One JSON object, or with `stream` server-sent events that end with `[DONE]`."""
    gateway = gateway_of(request)
    chat = parse_chat(await read_object(request, gateway.settings.max_body_bytes), gateway.settings.max_choices)
    gateway.models.check(chat.model)
    return await until_gone(_answer(chat, gateway, request), request.receive)


async def _answer(chat: ChatRequest, gateway: Gateway, request: Request) -> Response:
    call = call_context(request)
    run = await gateway.pipeline.start(chat.request, call)
    streamed = False
    try:
        head = AnswerHead(chat.model, gateway.cluster.fingerprint)
        if not chat.stream:
            return _whole(await _all_events(run), head, chat, run)
        # Errors that come before the first token, or quickly, still have their own status.
        if await run.events.wait(gateway.settings.keep_alive_s):
            run.events.check()
        streamed = True
    finally:
        if not streamed:
            await run.close()
    writer = ChunkWriter(
        head,
        run.usage,
        reasoning_fields=gateway.settings.stream_reasoning_fields,
        show_reasoning=chat.show_reasoning,
        include_usage=chat.include_usage,
        continuous_usage=chat.continuous_usage,
    )
    return EventStream(_stream(run, writer, gateway.settings.keep_alive_s), run.close)


async def _all_events(run: Run) -> list[Event]:
    events: list[Event] = []
    while batch := await run.events.take():
        events += batch
    return events


def _whole(events: list[Event], head: AnswerHead, chat: ChatRequest, run: Run) -> Response:
    choices = assemble(events, run.num_choices)
    body = whole_answer(head, choices, run.usage, show_reasoning=chat.show_reasoning)
    return Response(orjson.dumps(body), media_type="application/json")


async def _stream(run: Run, writer: ChunkWriter, keep_alive_s: float) -> AsyncGenerator[bytes, None]:
    """The whole event stream."""
    with OPEN_STREAMS.track_inprogress():
        try:
            while True:
                if not await run.events.wait(keep_alive_s):
                    yield KEEP_ALIVE
                elif events := await run.events.take():
                    yield writer.write(events)
                else:
                    break
            yield writer.last() + DONE
        except MoonshardError as error:
            yield data_event(orjson.dumps(openai_error(error))) + DONE
