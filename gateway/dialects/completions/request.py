"""A checked completion request as the internal form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gateway.dialects.answer_form import answer_form
from gateway.dialects.completions.field_rules import RULES
from gateway.dialects.completions.schema import CompletionRequest
from gateway.dialects.sampling import TEMPERATURE_THINKING, refuse_sampling_contradictions, sampling_from
from gateway.dialects.unknown_fields import ignored_fields
from gateway.http.body import check
from gateway.request.chat_model import Output, RawPrompts, Request
from services.runtime.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class CompletionAsk:
    """A request and how its answer is to be shown on this dialect.

    echoes_only            no token of an answer is wanted, only what there is to say of the prompt
    echoes_logprobs        the log-probabilities of an echoed prompt stand before those of the answer
    shows_prompt_logprobs  they have a field of their own
    ignored                fields of the body that have no effect
    """

    request: Request
    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    echoes_only: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    echoes_logprobs: bool
    shows_prompt_logprobs: bool
    ignored: tuple[str, ...]


def parse_completion(
    body: Mapping[str, Any], *, max_choices: int, max_prompts: int, refuse_unknown: bool = False
) -> CompletionAsk:
    """Check a body and translate it. InvalidRequest names the field that is wrong."""
    asked = check(CompletionRequest, body)
    ignored = ignored_fields(asked, RULES, refuse_unknown=refuse_unknown)
    echoes_only = asked.max_tokens == 0
    if echoes_only and not asked.echo:
        raise InvalidRequest("max_tokens: 0 asks for nothing without echo", field="max_tokens")
    # Engines make one token at least; it is not shown.
    max_tokens = 1 if echoes_only else asked.max_tokens or DEFAULT_MAX_TOKENS
    refuse_sampling_contradictions(asked, max_tokens=max_tokens, max_choices=max_choices)
    form = answer_form(asked)
    echoes_logprobs = asked.echo is True and asked.logprobs is not None
    wanted = [asked.prompt_logprobs, asked.logprobs if echoes_logprobs else None]
    prompts = _prompts_of(asked)
    if len(prompts) > max_prompts:
        raise InvalidRequest(f"prompt: at most {max_prompts} prompts are accepted in one request", field="prompt")
    options = asked.stream_options
    request = Request(
        RawPrompts(prompts),
        sampling_from(
            asked,
            temperature=TEMPERATURE_THINKING,
            token_limit=("max_tokens", max_tokens),
            num_top_logprobs=asked.logprobs,
            num_prompt_logprobs=max((number for number in wanted if number is not None), default=None),
        ),
        Output(
            drop_tool_calls=True,
            stop=asked.stops,
            include_stop=asked.include_stop_str_in_output is True,
            keep_special=asked.skip_special_tokens is False,
        ),
        num_choices=asked.n or 1,
        json_answer=form,
    )
    return CompletionAsk(
        request,
        asked.model,
        prompts,
        echo=asked.echo is True,
        echoes_only=echoes_only,
        stream=asked.stream is True,
        include_usage=options is not None and options.include_usage is True,
        continuous_usage=options is not None and options.continuous_usage_stats is True,
        echoes_logprobs=echoes_logprobs,
        shows_prompt_logprobs=asked.prompt_logprobs is not None,
        ignored=ignored,
    )


def _prompts_of(asked: CompletionRequest) -> tuple[str | tuple[int, ...], ...]:
    prompt = asked.prompt
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (tuple(cast(Sequence[int], prompt)),)
    return tuple(item if isinstance(item, str) else tuple(cast(Sequence[int], item)) for item in prompt)
