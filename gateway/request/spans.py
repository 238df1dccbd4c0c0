"""What the span of a request says: OpenTelemetry's conventions for generative models (gen_ai.*)."""

from collections.abc import Sequence

import orjson

from gateway.http.request_context import RequestContext
from gateway.request.answer_model import Content, FinishName, Reasoning, Usage
from gateway.request.chat_model import Conversation, Media, Request, Text
from gateway.settings import GatewaySettings
from services.runtime.errors import MoonshardError


def trace_request(call: RequestContext, request: Request, settings: GatewaySettings) -> None:
    """Put the request into its span; its text only where the settings say so."""
    if call.root is None:
        return
    sampling, output = request.sampling, request.output
    known = {
        "gen_ai.request.max_tokens": sampling.max_new_tokens,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.choice.count": request.num_choices if request.num_choices > 1 else None,
    }
    call.root.set(
        {
            "gen_ai.operation.name": "text_completion" if request.conversation.is_raw else "chat",
            "gen_ai.provider.name": "moonshard",
            "gen_ai.request.model": settings.model_name,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
            "gen_ai.output.type": "json" if request.json_answer is not None else "text",
            **{name: value for name, value in known.items() if value is not None},
        }
    )
    if settings.trace_content:
        call.root.set({"gen_ai.request.stop_sequences": output.stop, "gen_ai.input.messages": _input(request)})


def trace_outcome(
    call: RequestContext,
    usage: Usage,
    finishes: Sequence[FinishName],
    error: MoonshardError | None,
    shown: Sequence[tuple[int, Content | Reasoning]],
) -> None:
    """Put the outcome into the span. `shown` is empty unless traces may hold content."""
    if call.root is None:
        return
    call.root.set(
        {
            "gen_ai.response.finish_reasons": finishes,
            "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
            "gen_ai.usage.output_tokens": usage.num_completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.num_cached_tokens,
            **({"error.type": type(error).__name__} if error is not None else {}),
        }
    )
    if shown:
        choices = sorted({choice for choice, _ in shown})
        messages = [{"role": "assistant", "parts": _parts(shown, choice)} for choice in choices]
        call.root.set({"gen_ai.output.messages": orjson.dumps(messages).decode()})


def _input(request: Request) -> str:
    if isinstance(request.conversation, Conversation):
        messages = [
            {"role": message.role, "parts": [_part(part) for part in message.content]}
            for message in request.conversation.messages
        ]
    else:
        texts = [prompt for prompt in request.conversation.texts if isinstance(prompt, str)]
        messages = [{"role": "user", "parts": [{"type": "text", "content": text}]} for text in texts]
    return orjson.dumps(messages).decode()


def _part(part: Text | Media) -> dict[str, str]:
    if isinstance(part, Text):
        return {"type": "text", "content": part.text}
    return {"type": "blob", "modality": part.kind}


def _parts(shown: Sequence[tuple[int, Content | Reasoning]], choice: int) -> list[dict[str, str]]:
    parts = []
    for kind, name in ((Reasoning, "reasoning"), (Content, "text")):
        if text := "".join(piece.text for of, piece in shown if of == choice and isinstance(piece, kind)):
            parts.append({"type": name, "content": text})
    return parts
