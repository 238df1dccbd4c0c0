"""Settings of the gateway: one field per MOONSHARD_* variable."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from services.runtime.settings import Names, OptionalAddress, Places, StoreSettings, StoreUrls

OPENABLE = ("/docs", "/redoc", "/openapi.json", "/metrics")


class GatewaySettings(StoreSettings):
    """Addresses of the replicas, names of the model, bounds and waits."""

    tokenizers: Annotated[Places, Field(min_length=1)] = Field(
        description="Tokenizer replicas: host:port, unix:/path or dns:NAME:PORT, separated by commas."
    )
    prefills: Places = Field((), description="Prefill replicas. Empty: decode replicas compute prompts.")
    decodes: Annotated[Places, Field(min_length=1)] = Field(description="Decode replicas.")
    visions: Places = Field((), description="Vision replicas. Empty: images and videos are refused.")
    discover_s: PositiveFloat = Field(2.0, description="Interval between two look-ups of a DNS name.")

    model_name: str = Field("kimi-k2.6", description="Name of the model in the API.")
    model_aliases: Names = Field(
        ("moonshotai/Kimi-K2.6", "kimi-k2.6"), description="Other accepted names of the model, separated by commas."
    )
    model_display_name: str = Field("Kimi K2.6", description="Name of the model for people.")
    stream_reasoning_fields: Literal["reasoning_content", "reasoning", "both"] = Field(
        "reasoning_content", description="Name of the field that carries reasoning in streams of chat completions."
    )
    anthropic_default_thinking: Literal["off", "on"] = Field(
        "off", description="Thinking in an Anthropic request that says nothing about it."
    )

    param_policy: Literal["open", "kvv", "fixed"] = Field(
        "open",
        description="Sampling parameters that a chat request may set: open (all), kvv (as K2 Vendor Verifier), fixed.",
    )
    unknown_fields: Literal["warn", "refuse"] = Field(
        "warn", description="Undocumented fields of a request: accepted with a warning, or 400."
    )
    default_max_tokens: PositiveInt = Field(
        32768, description="Most tokens of an answer where the request says nothing."
    )
    max_choices: PositiveInt = Field(8, description="Largest n of one request.")
    max_open_requests: PositiveInt = Field(1024, description="Requests in progress. More get 429.")
    max_prompts: PositiveInt = Field(64, description="Prompts of one completions request.")
    max_media: PositiveInt = Field(64, description="Different images and videos in one request.")
    max_media_bytes: PositiveInt = Field(100 * 2**20, description="Size of one image or video that is fetched.")
    media_hosts: Names = Field(
        (),
        description="Hosts from which media are fetched: host, .domain for all below it, or *. Empty: none.",
    )
    media_fetch_s: PositiveFloat = Field(20.0, description="Timeout of one fetch, redirects included.")
    store: StoreUrls = Field(
        (), description="Redis URLs for uploaded files, separated by commas. Empty: no file uploads."
    )
    file_ttl_s: PositiveFloat = Field(86400.0, description="Lifetime of an uploaded file.")
    max_file_bytes: PositiveInt = Field(100 * 2**20, description="Size of one uploaded file.")
    max_files: PositiveInt = Field(1000, description="Uploaded files of one key.")
    max_body_bytes: PositiveInt = Field(64 * 2**20, description="Size of one request body, after decompression.")
    max_text_chars: PositiveInt = Field(
        16 * 2**20, description="Characters of all texts of one request, about ten times a full context."
    )
    max_bodies_bytes: PositiveInt = Field(
        512 * 2**20, description="Size of the bodies of all open requests together, compressed and decompressed."
    )
    max_key_bodies_bytes: PositiveInt = Field(256 * 2**20, description="The same for the open requests of one key.")
    max_body_values: PositiveInt = Field(1_000_000, description="JSON values in one body.")
    max_body_containers: PositiveInt = Field(100_000, description="JSON objects and lists in one body.")
    max_body_depth: Annotated[int, Field(ge=8, le=250)] = Field(100, description="Nesting of JSON in one body.")
    body_s: PositiveFloat = Field(30.0, description="Time for a body, on top of what BODY_BYTES_PER_S allows.")
    body_bytes_per_s: PositiveInt = Field(65536, description="Slowest rate at which a body may come.")
    max_header_bytes: PositiveInt = Field(32768, description="Size of the request line and all headers.")
    max_headers: PositiveInt = Field(100, description="Headers of one request.")
    header_s: PositiveFloat = Field(10.0, description="Time for request line and headers.")
    max_connections: PositiveInt = Field(2048, description="Open HTTP connections. More get 429.")
    max_address_connections: PositiveInt = Field(
        1024, description="Open HTTP connections of one client address, which may be a proxy. More get 429."
    )
    prefill_min_tokens: NonNegativeInt = Field(64, description="Shorter prompts go directly to a decode replica.")

    keys_file: Path | None = Field(
        None, description="File with the SHA-256 of one API key per line. None: no key is needed."
    )
    open_paths: Names = Field(
        (), description="Paths that need no key, of /docs, /redoc, /openapi.json, /metrics. Not the rest of the API."
    )
    cors_origins: Names = Field(
        (), description="Origins whose pages may call the API from a browser, or *. Empty: none, no CORS headers."
    )
    requests_per_minute: NonNegativeInt = Field(0, description="Limit of each key. 0: no limit.")
    tokens_per_minute: NonNegativeInt = Field(
        0, description="Limit of each key, prompt and answer together. 0: no limit."
    )
    limits_store: StoreUrls = Field(
        (), description="Redis URL that counts limits for all gateways. Empty: each gateway counts alone."
    )

    health_id: str = Field(
        "",
        description="Header x-moonshard-id of GET /health, by which a supervisor knows its gateway. Empty: none.",
    )
    demand_listen: OptionalAddress = Field("", description="Address where the autoscaler reads demand. Empty: none.")
    wake_s: NonNegativeFloat = Field(0.0, description="Longest wait for a role at zero. 0: HOLD_S applies.")
    max_held: PositiveInt = Field(256, description="Requests that wait for a role. More get 429.")

    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="Fraction of traces recorded, for requests without a traceparent header."
    )
    trace_content: bool = Field(False, description="Record what users and the model write.")

    request_s: PositiveFloat = Field(3600.0, description="Deadline of a request, its whole answer included.")
    begin_s: PositiveFloat = Field(
        60.0, description="Longest predicted wait for a first token. What would wait longer gets 429 at once."
    )
    hold_s: PositiveFloat = Field(10.0, description="Wait for a first replica before the answer has begun.")
    restart_s: PositiveFloat = Field(
        120.0, description="The same for a role that was ready before and is gone: as long as its restart takes."
    )
    resume_s: PositiveFloat = Field(300.0, description="Wait for another replica after the answer has begun.")
    prefill_s: PositiveFloat = Field(600.0, description="Timeout of the computation of one prompt.")
    stall_s: PositiveFloat = Field(
        60.0, description="Silence between two tokens that counts as the loss of the replica."
    )
    tokenizer_s: PositiveFloat = Field(30.0, description="Timeout of one tokenizer call.")
    vision_s: PositiveFloat = Field(300.0, description="Timeout of encoding one image or video.")
    keep_alive_s: PositiveFloat = Field(12.0, description="Silence after which a stream gets a comment.")
    load_poll_s: PositiveFloat = Field(0.5, description="Interval at which replicas are asked for their load.")

    @model_validator(mode="after")
    def _open_paths_exist(self) -> Self:
        for path in self.open_paths:
            if path not in OPENABLE:
                raise ValueError(f"MOONSHARD_OPEN_PATHS: {path!r} is none of {', '.join(OPENABLE)}")
        return self

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
