"""How tokens are drawn, as the OpenAI dialects ask for it: the fields, their ranges, and the internal form."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from gateway.http.body import Body, Int, NaturalInt, PositiveInt, quote, text_or_list
from gateway.request.chat_model import Sampling
from services.runtime.errors import InvalidRequest

TEMPERATURE_THINKING = 1.0
TEMPERATURE_INSTANT = 0.6
TOP_P = 0.95
MAX_ID_DIGITS = 9

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
StopStrings = Annotated[
    Annotated[StopString, Tag("~text")] | Annotated[list[StopString], Tag("~list"), Field(max_length=16)],
    Discriminator(
        text_or_list,
        custom_error_type="stop_form",
        custom_error_message="must be a string or a list of strings",
    ),
]


class StreamOptions(Body):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Body):
    """What chat and plain completions have in common."""

    max_tokens: PositiveInt | None = None
    min_tokens: NaturalInt | None = None
    n: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[NaturalInt], Field(max_length=32)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: Annotated[list[NaturalInt], Field(min_length=1, max_length=16384)] | None = None
    bad_words: Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=128)] | None = (
        None
    )
    prompt_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    priority: Annotated[Int, Field(ge=-(2**31), lt=2**31)] | None = Field(None, description="Carried to the engines.")

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def refuse_sampling_contradictions(fields: SamplingFields, *, max_tokens: int | None, max_choices: int) -> None:
    """Refuse values that contradict each other; InvalidRequest names the field."""
    if fields.n is not None and fields.n > max_choices:
        raise InvalidRequest(f"n: at most {max_choices} choices are possible", field="n")
    if fields.stream_options is not None and fields.stream is not True:
        raise InvalidRequest("stream_options: only allowed when stream is true", field="stream_options")
    if max_tokens is not None and fields.min_tokens is not None and fields.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens: more than the {max_tokens} tokens that are allowed", field="min_tokens")
    if fields.prompt_logprobs is not None and fields.stream is True:
        raise InvalidRequest("prompt_logprobs: not in a stream", field="prompt_logprobs")
    for key in fields.logit_bias or {}:
        if not (key.isascii() and key.isdecimal() and len(key) <= MAX_ID_DIGITS):
            raise InvalidRequest(f"logit_bias: {quote(key)} is not a token id", field="logit_bias")


def sampling_from(
    fields: SamplingFields,
    *,
    temperature: float,
    token_limit: tuple[str, int | None],
    num_top_logprobs: int | None,
    num_prompt_logprobs: int | None,
    max_thinking_tokens: int | None = None,
) -> Sampling:
    """Return the internal form.

    temperature  the default
    token_limit  the field that limits the answer, and its value
    num_...      alternatives to each token of the answer or the prompt; None: no log-probabilities of it
    """
    return Sampling(
        temperature=fields.temperature if fields.temperature is not None else temperature,
        top_p=fields.top_p if fields.top_p is not None else TOP_P,
        seed=fields.seed,
        max_new_tokens=token_limit[1],
        budget_field=token_limit[0],
        min_new_tokens=fields.min_tokens or 0,
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=fields.ignore_eos is True,
        top_k=max(0, fields.top_k or 0),
        min_p=fields.min_p or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=fields.repetition_penalty or 1.0,
        logit_bias=tuple((int(key), bias) for key, bias in (fields.logit_bias or {}).items()),
        num_top_logprobs=num_top_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        max_thinking_tokens=max_thinking_tokens,
        allowed_token_ids=tuple(fields.allowed_token_ids or ()),
        bad_words=tuple(fields.bad_words or ()),
        priority=fields.priority or 0,
    )
