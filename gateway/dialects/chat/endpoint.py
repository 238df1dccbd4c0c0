"""POST /v1/chat/completions."""

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.chat.answer import ChatStyle, ChunkWriter, whole_answer
from gateway.dialects.chat.answer_types import ChatCompletion, ChatCompletionWithPrompt
from gateway.dialects.chat.request import ChatRequest, parse_chat
from gateway.dialects.chat.schema import ChatCompletionRequest
from gateway.dialects.context import Gateway, call_context, gateway_of
from gateway.dialects.respond import deliver
from gateway.http.openapi import json_body
from gateway.http.routes import ApiRoute
from gateway.request.active_request import ActiveRequest
from gateway.request.answer_model import AnswerEvent, assemble


async def chat_completions(request: Request) -> Response:
    """Answer a conversation: one JSON object, or with `stream` server-sent events that end with `[DONE]`."""
    gateway = gateway_of(request)
    settings = gateway.settings
    parse = partial(
        parse_chat,
        max_choices=settings.max_choices,
        policy=settings.param_policy,
        refuse_unknown=settings.unknown_fields == "refuse",
    )
    chat = await gateway.bodies.read_json(request, parse)
    call_context(request).ignored.extend(chat.ignored)
    gateway.models.check(chat.model)
    return await deliver(request, chat.request, ChatAnswerer(chat, gateway), stream=chat.stream)


class ChatAnswerer:
    """Shows an answer as a chat completion."""

    def __init__(self, chat: ChatRequest, gateway: Gateway) -> None:
        self._chat = chat
        self._gateway = gateway

    def whole(self, events: Sequence[AnswerEvent], active: ActiveRequest) -> ChatCompletion | ChatCompletionWithPrompt:
        """Return the body of an answer that is not streamed."""
        return whole_answer(self._style(), assemble(events, active.num_choices), active.usage)

    def writer(self, active: ActiveRequest) -> ChunkWriter:
        """Return the writer of a stream."""
        return ChunkWriter(self._style(), active.usage)

    def _style(self) -> ChatStyle:
        chat, sampling = self._chat, self._chat.request.sampling
        return ChatStyle(
            chat.model,
            self._gateway.cluster.fingerprint,
            show_reasoning=chat.show_reasoning,
            show_logprobs=sampling.num_top_logprobs is not None,
            show_prompt_logprobs=sampling.num_prompt_logprobs is not None,
            include_usage=chat.include_usage,
            continuous_usage=chat.continuous_usage,
            reasoning_fields=self._gateway.settings.stream_reasoning_fields,
        )


ROUTES = (ApiRoute("POST", "/v1/chat/completions", chat_completions, body=json_body(ChatCompletionRequest)),)
