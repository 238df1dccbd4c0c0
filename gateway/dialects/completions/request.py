"""A checked completion request as the internal form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gateway.dialects.completions.schema import CompletionRequest
from gateway.dialects.sampling import TEMPERATURE_THINKING, refuse_sampling_contradictions, sampling_from
from gateway.http.body import check
from gateway.request.chat_model import Output, RawPrompts, Request
from services.runtime.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16

# What other servers do with these fields and we don't; the values that ask for nothing pass.
NOT_DONE: Mapping[str, tuple[object, ...]] = {
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "cache_salt": (),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "return_token_ids": (False,),
    "kv_transfer_params": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}


@dataclass(frozen=True, slots=True)
class CompletionAsk:
    """A request and how its answer is to be shown on this dialect."""

    request: Request
    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool


def parse_completion(body: Mapping[str, Any], *, max_choices: int, max_prompts: int) -> CompletionAsk:
    """Checks and translates a body. InvalidRequest names the field that is wrong."""
    asked = check(CompletionRequest, body)
    for name, harmless in NOT_DONE.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise InvalidRequest(f"{name} is not supported", field=name)
    max_tokens = asked.max_tokens or DEFAULT_MAX_TOKENS
    refuse_sampling_contradictions(asked, max_tokens=max_tokens, max_choices=max_choices)
    if asked.echo and asked.logprobs is not None:
        # Those of the prompt belong to the answer then, and nothing computes them.
        raise InvalidRequest("logprobs: not together with echo", field="logprobs")
    prompts = _prompts_of(asked)
    if len(prompts) > max_prompts:
        raise InvalidRequest(f"prompt: at most {max_prompts} prompts are accepted in one request", field="prompt")
    options = asked.stream_options
    request = Request(
        RawPrompts(prompts),
        sampling_from(asked, temperature=TEMPERATURE_THINKING, max_tokens=max_tokens, num_top_logprobs=asked.logprobs),
        Output(
            drop_tool_calls=True,
            stop=asked.stops,
            include_stop=asked.include_stop_str_in_output is True,
            keep_special=asked.skip_special_tokens is False,
        ),
        num_choices=asked.n or 1,
    )
    return CompletionAsk(
        request,
        asked.model,
        prompts,
        echo=asked.echo is True,
        stream=asked.stream is True,
        include_usage=options is not None and options.include_usage is True,
        continuous_usage=options is not None and options.continuous_usage_stats is True,
    )


def _prompts_of(asked: CompletionRequest) -> tuple[str | tuple[int, ...], ...]:
    prompt = asked.prompt
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (tuple(cast(Sequence[int], prompt)),)
    return tuple(item if isinstance(item, str) else tuple(cast(Sequence[int], item)) for item in prompt)
