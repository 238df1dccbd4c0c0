"""What the gateway is told at start: one field per MOONSHARD_* variable."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from services.runtime.settings import Names, OptionalAddress, Places, StoreSettings, StoreUrls


class GatewaySettings(StoreSettings):
    """Addresses of the replicas, names of the model, bounds and waits."""

    tokenizers: Annotated[Places, Field(min_length=1)]
    prefills: Places = ()  # empty: decode replicas compute prompts themselves
    decodes: Annotated[Places, Field(min_length=1)]
    visions: Places = ()  # empty: images and videos are refused
    discover_s: PositiveFloat = 2.0  # between two look-ups of a name

    model_name: str = "kimi-k2.6"
    model_aliases: Names = ("moonshotai/Kimi-K2.6", "kimi-k2.6")
    model_display_name: str = "Kimi K2.6"
    stream_reasoning_fields: Literal["reasoning_content", "reasoning", "both"] = "reasoning_content"
    anthropic_default_thinking: Literal["off", "on"] = "off"  # where a request of that dialect says nothing

    param_policy: Literal["open", "kvv", "fixed"] = "open"  # which sampling parameters a chat may choose
    default_max_tokens: PositiveInt = 32768  # where the client says nothing
    max_choices: PositiveInt = 8
    max_open_requests: PositiveInt = 1024  # beyond: 429
    max_prompts: PositiveInt = 64  # of one plain completion request
    max_media: PositiveInt = 64  # different images and videos in one request
    max_media_bytes: PositiveInt = 100 * 2**20  # of one image or video that is fetched
    media_hosts: Names = ()  # from where media are fetched: host, .domain for all below it, or *; empty: not at all
    media_fetch_s: PositiveFloat = 20.0  # longest fetch of one, redirects included
    store: StoreUrls = ()  # Redis instances that keep uploaded files; empty: there are none
    file_ttl_s: PositiveFloat = 86400.0  # after which a file is gone
    max_file_bytes: PositiveInt = 100 * 2**20
    max_files: PositiveInt = 1000  # of one key
    max_body_bytes: PositiveInt = 64 * 2**20
    prefill_min_tokens: NonNegativeInt = 64  # shorter prompts go to the decode replica at once

    keys_file: Path | None = None  # SHA-256 of an API key per line; none: everybody may come in
    requests_per_minute: NonNegativeInt = 0  # of each key; 0: as many as it likes
    tokens_per_minute: NonNegativeInt = 0  # of each key, prompts and answers together; 0: as many as it likes
    limits_store: StoreUrls = ()  # the Redis that counts for all gateways, the first of the list; empty: each its own

    demand_listen: OptionalAddress = ""  # where the autoscaler asks who waits for what; empty: nowhere
    wake_s: NonNegativeFloat = 0.0  # longest wait for a role at zero; 0: nobody wakes roles here, hold_s counts
    max_held: PositiveInt = 256  # requests that wait for a role at once; beyond: 429

    # Of requests whose client does not say by a traceparent whether its trace is recorded.
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    trace_content: bool = False  # what users and the model say goes into recorded traces

    request_s: PositiveFloat = 3600.0  # deadline of a request, its whole answer included
    hold_s: PositiveFloat = 10.0  # wait for a first replica before the answer has begun
    resume_s: PositiveFloat = 300.0  # wait for another replica once it has
    prefill_s: PositiveFloat = 600.0  # longest computation of a prompt
    stall_s: PositiveFloat = 60.0  # silence between two tokens that counts as a loss
    tokenizer_s: PositiveFloat = 30.0  # longest call of a tokenizer
    vision_s: PositiveFloat = 300.0  # longest encoding of an image or video
    keep_alive_s: PositiveFloat = 12.0  # silence after which a stream gets a comment
    load_poll_s: PositiveFloat = 0.5  # how often replicas are asked for their load

    @model_validator(mode="after")
    def _waits_fit(self) -> Self:
        if self.wake_s >= self.request_s:
            raise ValueError(
                f"MOONSHARD_WAKE_S={self.wake_s:g} must be less than MOONSHARD_REQUEST_S={self.request_s:g}"
            )
        return self

    @property
    def longest_hold_s(self) -> float:
        """How long a request that has no answer yet waits for a replica."""
        return max(self.hold_s, self.wake_s)
