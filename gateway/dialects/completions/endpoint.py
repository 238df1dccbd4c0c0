"""POST /v1/completions."""

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.completions.answer import CompletionStyle, PieceWriter, whole_completion
from gateway.dialects.completions.answer_types import TextCompletion
from gateway.dialects.completions.request import CompletionAsk, parse_completion
from gateway.dialects.completions.schema import CompletionRequest
from gateway.dialects.context import Gateway, call_context, gateway_of
from gateway.dialects.respond import deliver
from gateway.http.openapi import json_body
from gateway.http.routes import ApiRoute
from gateway.request.active_request import ActiveRequest
from gateway.request.answer_model import AnswerEvent, assemble


async def completions(request: Request) -> Response:
    """Continue prompts: one JSON object, or with `stream` server-sent events that end with `[DONE]`."""
    gateway = gateway_of(request)
    settings = gateway.settings
    parse = partial(
        parse_completion,
        max_choices=settings.max_choices,
        max_prompts=settings.max_prompts,
        refuse_unknown=settings.unknown_fields == "refuse",
    )
    asked = await gateway.bodies.read_json(request, parse)
    call_context(request).ignored.extend(asked.ignored)
    gateway.models.check(asked.model)
    answerer = CompletionAnswerer(asked, gateway, await _echoes_of(asked, gateway, request))
    return await deliver(request, asked.request, answerer, stream=asked.stream)


class CompletionAnswerer:
    """Shows an answer as a completion. Choice i belongs to prompt i // n."""

    def __init__(self, asked: CompletionAsk, gateway: Gateway, echoes: Sequence[str]) -> None:
        self._style = CompletionStyle(
            asked.model,
            gateway.cluster.fingerprint,
            echoes,
            echoes_only=asked.echoes_only,
            echoes_logprobs=asked.echoes_logprobs,
            show_logprobs=asked.request.sampling.num_top_logprobs is not None,
            show_prompt_logprobs=asked.shows_prompt_logprobs,
            include_usage=asked.include_usage,
            continuous_usage=asked.continuous_usage,
        )

    def whole(self, events: Sequence[AnswerEvent], active: ActiveRequest) -> TextCompletion:
        """Return the body of an answer that is not streamed."""
        shown = list(self._style.shown(events))
        return whole_completion(self._style, assemble(shown, active.num_choices), active.usage)

    def writer(self, active: ActiveRequest) -> PieceWriter:
        """Return the writer of a stream."""
        return PieceWriter(self._style, active.usage)


async def _echoes_of(asked: CompletionAsk, gateway: Gateway, request: Request) -> list[str]:
    """Return the text before each choice's own: its prompt, or nothing."""
    skip_special = not asked.request.output.keep_special
    echoes: list[str] = []
    for prompt in asked.prompts:
        if not asked.echo:
            echo = ""
        elif isinstance(prompt, str):
            echo = prompt
        else:
            echo = (await gateway.cluster.detokenize(prompt, call_context(request), skip_special=skip_special)).text
        echoes += [echo] * asked.request.num_choices
    return echoes


ROUTES = (ApiRoute("POST", "/v1/completions", completions, body=json_body(CompletionRequest)),)
