"""What an attention shard is told at start."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from services.attention.experts.experts import parse_experts
from services.model.device import Device
from services.runtime.discovery import DNS
from services.runtime.settings import Addresses, StoreSettings, StoreUrls, check_address, check_place
from services.runtime.shards import ShardSettings

ORDINAL = "{ordinal}"


class AttentionSettings(ShardSettings, StoreSettings):
    """One field per MOONSHARD_* variable. Shard 0 is the engine."""

    model: Path  # checkpoint folder
    role: Literal["prefill", "decode"]
    # Of shards 1, 2, ... of this replica, for the engine only; or one template with {ordinal} in it, for all pods.
    next_shards: Addresses = ()
    # Shards by commas, replicas of one by |; or dns:NAME:PORT of all replicas of all shards; empty: in this process.
    experts: str = ""
    expert_shards: NonNegativeInt = 0  # how many there are, where experts is a name
    discover_s: PositiveFloat = 2.0  # between two look-ups of a name
    expert_transport: Literal["grpc", "unix"] = "grpc"
    expert_deadline_s: PositiveFloat = 60.0  # a step's wait for experts before its requests fail
    store: StoreUrls = ()  # empty: nothing is published or fetched
    store_timeout_s: PositiveFloat = 2.0
    kv_ttl_s: PositiveFloat = 600.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of activations, and of latent KV where that is auto
    kv_dtype: Literal["auto", "fp8"] = "auto"  # of latent KV; fp8: 656 bytes a token and layer of K2.6 instead of 1152
    device: Device = "auto"  # a GPU if there is one
    latent_norm_eps: PositiveFloat = 1e-6
    block_tokens: PositiveInt = 64
    num_blocks: PositiveInt = 256
    step_tokens: PositiveInt = 512  # most tokens in one step
    max_running: PositiveInt = 64
    max_waiting: PositiveInt = 256
    micro_batches: Literal[1, 2] = 2  # in flight at once, when experts are remote
    micro_batch_tokens: PositiveInt = 64  # a smaller step is not split
    threads: PositiveInt = 1
    # Of the steps of recorded requests, how many get a span for each frame to an expert shard, in shard 0's layers.
    trace_layer_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    startup_s: PositiveFloat = 120.0  # wait for experts and further shards before giving up

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
        """Per expert shard the addresses that are told; none: experts in this process."""
        if self.experts.startswith(DNS):
            return [[] for _ in range(self.expert_shards)]
        return parse_experts(self.experts)

    @property
    def expert_name(self) -> str:
        """The name behind which all replicas of all expert shards are; empty: there is none."""
        return self.experts if self.experts.startswith(DNS) else ""

    @property
    def further_shards(self) -> tuple[str, ...]:
        """Addresses of the shards that this engine drives; none for a further shard."""
        if not self._has_template:
            return self.next_shards
        ordinal = self.ordinal or 0
        further = range(1, self.num_shards) if self.shard == 0 else range(0)
        return tuple(self.next_shards[0].replace(ORDINAL, str(ordinal + shard)) for shard in further)

    @property
    def _has_template(self) -> bool:
        return any(ORDINAL in address for address in self.next_shards)
