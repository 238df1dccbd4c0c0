"""POST /v1/chat/completions."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.chat.answer import AnswerHead, ChunkWriter, whole_answer
from gateway.dialects.chat.request import ChatRequest, parse_chat
from gateway.dialects.chat.schema import ChatCompletionRequest
from gateway.dialects.context import Gateway, gateway_of
from gateway.dialects.respond import deliver
from gateway.http.openapi import json_body
from gateway.http.routes import ApiRoute
from gateway.request.active_request import ActiveRequest
from gateway.request.chat_model import Event, assemble


async def chat_completions(request: Request) -> Response:
    """Answer a conversation: one JSON object, or with `stream` server-sent events that end with `[DONE]`."""
    gateway = gateway_of(request)
    settings = gateway.settings
    parse = partial(parse_chat, max_choices=settings.max_choices, policy=settings.param_policy)
    chat = await gateway.bodies.read_json(request, parse)
    gateway.models.check(chat.model)
    return await deliver(request, chat.request, ChatAnswerer(chat, gateway), stream=chat.stream)


class ChatAnswerer:
    """Shows a run as a chat completion."""

    def __init__(self, chat: ChatRequest, gateway: Gateway) -> None:
        self._chat = chat
        self._gateway = gateway
        self._created = int(time.time())

    def whole(self, events: Sequence[Event], run: ActiveRequest) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = assemble(events, run.num_choices)
        return whole_answer(
            self._head(),
            choices,
            run.usage,
            show_reasoning=self._chat.show_reasoning,
            show_logprobs=self._chat.request.sampling.num_top_logprobs is not None,
        )

    def writer(self, run: ActiveRequest) -> ChunkWriter:
        """The writer of one that is."""
        return ChunkWriter(
            self._head(),
            run.usage,
            reasoning_fields=self._gateway.settings.stream_reasoning_fields,
            show_reasoning=self._chat.show_reasoning,
            include_usage=self._chat.include_usage,
            continuous_usage=self._chat.continuous_usage,
        )

    def _head(self) -> AnswerHead:
        return AnswerHead(self._chat.model, self._gateway.cluster.fingerprint, created=self._created)


ROUTES = (ApiRoute("POST", "/v1/chat/completions", chat_completions, body=json_body(ChatCompletionRequest)),)
