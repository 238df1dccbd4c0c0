"""What an attention shard is told at start."""

from pathlib import Path
from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from services.attention.dispatch import parse_experts
from services.runtime.settings import Addresses, ServiceSettings, StoreUrls, check_address


class AttentionSettings(ServiceSettings):
    """One field per MOONSHARD_* variable."""

    model: Path  # checkpoint folder
    role: Literal["prefill", "decode"]
    shard: NonNegativeInt = 0  # 0 is the engine
    num_shards: PositiveInt = 1
    next_shards: Addresses = ()  # of shards 1, 2, ... of this replica; for the engine only
    experts: str = ""  # expert shards by commas, replicas of one by |; empty: experts in this process
    expert_transport: Literal["grpc", "unix"] = "grpc"
    expert_deadline_s: PositiveFloat = 60.0  # a step's wait for experts before its requests fail
    store: StoreUrls = ()  # empty: nothing is published or fetched
    store_timeout_s: PositiveFloat = 2.0
    kv_ttl_s: PositiveFloat = 600.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of activations and latent KV
    latent_norm_eps: PositiveFloat = 1e-6
    block_tokens: PositiveInt = 64
    num_blocks: PositiveInt = 256
    step_tokens: PositiveInt = 512  # most tokens in one step
    max_running: PositiveInt = 64
    max_waiting: PositiveInt = 256
    micro_batches: Literal[1, 2] = 2  # in flight at once, when experts are remote
    micro_batch_tokens: PositiveInt = 64  # a smaller step is not split
    threads: PositiveInt = 1
    startup_s: PositiveFloat = 120.0  # wait for experts and further shards before giving up

    @model_validator(mode="after")
    def _shards_fit(self) -> Self:
        if self.shard >= self.num_shards:
            raise ValueError(f"MOONSHARD_SHARD={self.shard} is outside 0..{self.num_shards - 1}")
        expected = self.num_shards - 1 if self.shard == 0 else 0
        if len(self.next_shards) != expected:
            raise ValueError(
                f"MOONSHARD_NEXT_SHARDS names {len(self.next_shards)} shards, "
                f"shard {self.shard} of {self.num_shards} needs {expected}"
            )
        return self

    @model_validator(mode="after")
    def _experts_are_addresses(self) -> Self:
        try:
            for address in (address for replicas in self.expert_addresses for address in replicas):
                check_address(address)
        except ValueError as error:
            raise ValueError(f"MOONSHARD_EXPERTS: {error}") from None
        return self

    @property
    def expert_addresses(self) -> list[list[str]]:
        """Per expert shard the addresses of its replicas; empty: experts in this process."""
        return parse_experts(self.experts)
