"""Settings of an attention shard."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from services.attention.experts.experts import parse_experts
from services.model.device import Device
from services.runtime.discovery import DNS
from services.runtime.settings import Addresses, StoreSettings, StoreUrls, check_address, check_place
from services.wire.connect import TransportName
from services.wire.places import WireSettings

ORDINAL = "{ordinal}"


class AttentionSettings(WireSettings, StoreSettings):
    """One field per MOONSHARD_* variable. Shard 0 is the engine."""

    model: Path = Field(description="Folder of the checkpoint.")
    role: Literal["prefill", "decode"] = Field(
        description="prefill computes prompts only; decode generates, and computes prompts without prefill replicas."
    )
    next_shards: Addresses = Field(
        (),
        description="For shard 0: addresses of shards 1, 2, ... of this replica; or one template with {ordinal}.",
    )
    experts: str = Field(
        "",
        description="Expert shards, separated by commas; replicas of one by |; or dns:NAME:PORT. Empty: local experts.",
    )
    expert_shards: NonNegativeInt = Field(0, description="Number of expert shards, where EXPERTS is a DNS name.")
    discover_s: PositiveFloat = Field(2.0, description="Interval between two look-ups of a DNS name.")
    expert_transport: TransportName = Field(
        "auto",
        description="How activations travel to experts and further shards: shared (memory of the same machine), unix, "
        "tcp, grpc; auto: the first of these that works with a replica.",
    )
    expert_deadline_s: PositiveFloat = Field(60.0, description="Wait of one step for experts before its requests fail.")
    store: StoreUrls = Field((), description="Redis URLs, separated by commas. Empty: nothing is published or fetched.")
    store_timeout_s: PositiveFloat = Field(2.0, description="Timeout of one pipeline to Redis.")
    store_wait_s: NonNegativeFloat = Field(
        10.0, description="Time for which features of media are read again from a store that fails."
    )
    kv_ttl_s: PositiveFloat = Field(600.0, description="Lifetime of latent KV in the store.")
    handoff_hold_s: PositiveFloat = Field(
        30.0, description="How long a prefill replica keeps blocks that the store does not hold for the decode replica."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Type of activations, and of latent KV where KV_DTYPE is auto."
    )
    kv_dtype: Literal["auto", "fp8"] = Field(
        "auto", description="Type of latent KV. fp8: 656 bytes for each token and layer of K2.6 instead of 1152."
    )
    device: Device = Field("auto", description="auto (a GPU if there is one), cpu or cuda.")
    latent_norm_eps: PositiveFloat = Field(1e-6, description="Epsilon of the norm of the latent.")
    block_tokens: PositiveInt = Field(64, description="Tokens in one block of latent KV.")
    num_blocks: PositiveInt | None = Field(
        None, description="Blocks of latent KV in this process. None: half of the memory that weights leave."
    )
    step_tokens: PositiveInt = Field(512, description="Most tokens in one step.")
    expanded_bytes: NonNegativeInt = Field(
        2**31,
        description="Most memory for keys and values of running prompts, so that a chunk projects its own tokens only.",
    )
    max_running: PositiveInt = Field(64, description="Generations that run at once.")
    max_waiting: PositiveInt = Field(256, description="Generations that wait. More are refused.")
    draft_tokens: NonNegativeInt = Field(
        8,
        description="Most tokens of an answer that are guessed from its context and verified in one step; 0: none. "
        "Only on CPUs with native kernels, where verifying changes no bit.",
    )
    micro_batches: Literal[1, 2] = Field(2, description="Micro-batches in flight at once, when experts are remote.")
    micro_batch_tokens: PositiveInt = Field(64, description="A step with fewer tokens is not split.")
    kernels: Literal["auto", "amx", "avx512bf16", "avx512", "avx2", "portable", "reference"] = Field(
        "auto", description="Arithmetic of a CPU; auto: what the rule in kernels/README.md chooses."
    )
    threads: PositiveInt = Field(1, description="Threads of tensor arithmetic.")
    trace_layer_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Fraction of recorded steps with one span per frame to an expert shard, in the layers of shard 0.",
    )
    startup_s: PositiveFloat | None = Field(
        None,
        description="Wait for experts and further shards before the process gives up. None: as long as they load.",
    )

    @model_validator(mode="after")
    def _shards_fit(self) -> Self:
        if self._has_template:
            if self.ordinal is None:
                raise ValueError(f"MOONSHARD_NEXT_SHARDS has {ORDINAL} in it, so MOONSHARD_ORDINAL must be set")
            if len(self.next_shards) != 1:
                raise ValueError(f"MOONSHARD_NEXT_SHARDS has {ORDINAL} in it, so it must be the only address")
            return self
        expected = self.num_shards - 1 if self.shard == 0 else 0
        if len(self.next_shards) != expected:
            raise ValueError(
                f"MOONSHARD_NEXT_SHARDS names {len(self.next_shards)} shards, "
                f"shard {self.shard} of {self.num_shards} needs {expected}"
            )
        return self

    @model_validator(mode="after")
    def _experts_are_addresses(self) -> Self:
        named = self.experts.startswith(DNS)
        if named != bool(self.expert_shards):
            raise ValueError(
                "MOONSHARD_EXPERT_SHARDS is missing: MOONSHARD_EXPERTS is a name, which does not say how many there are"
                if named
                else f"MOONSHARD_EXPERT_SHARDS={self.expert_shards} is only for MOONSHARD_EXPERTS=dns:NAME:PORT"
            )
        try:
            for address in (address for replicas in self.expert_addresses for address in replicas):
                check_address(address)
            if named:
                check_place(self.experts)
        except ValueError as error:
            raise ValueError(f"MOONSHARD_EXPERTS: {error}") from None
        return self

    @property
    def expert_addresses(self) -> list[list[str]]:
        """The given addresses, by expert shard; empty: experts in this process."""
        if self.experts.startswith(DNS):
            return [[] for _ in range(self.expert_shards)]
        return parse_experts(self.experts)

    @property
    def expert_name(self) -> str:
        """The DNS name of all replicas of all expert shards; empty: none is given."""
        return self.experts if self.experts.startswith(DNS) else ""

    @property
    def further_shards(self) -> tuple[str, ...]:
        """Addresses of the shards that this engine drives; empty on a further shard."""
        if not self._has_template:
            return self.next_shards
        ordinal = self.ordinal or 0
        further = range(1, self.num_shards) if self.shard == 0 else range(0)
        return tuple(self.next_shards[0].replace(ORDINAL, str(ordinal + shard)) for shard in further)

    @property
    def _has_template(self) -> bool:
        return any(ORDINAL in address for address in self.next_shards)
