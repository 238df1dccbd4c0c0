"""Settings of a process that is one shard of a replica: its number, or the ordinal of its pod."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from services.runtime.settings import ServiceSettings


def _shard_of_pod(fields: Mapping[str, Any]) -> int:
    """From the fields that are valid so far."""
    ordinal: int = fields.get("ordinal") or 0
    num_shards: int = fields.get("num_shards", 1)
    return ordinal % num_shards


class ShardSettings(ServiceSettings):
    """The pods of one StatefulSet are all shards of all replicas: ordinal = replica * num_shards + shard."""

    num_shards: PositiveInt = Field(1, description="Shards (pods) of one replica.")
    ordinal: NonNegativeInt | None = Field(
        None, description="Ordinal of the pod in its StatefulSet, in place of SHARD: replica * num_shards + shard."
    )
    shard: NonNegativeInt = Field(
        default_factory=_shard_of_pod, description="Number of this shard, from 0. Default: ORDINAL modulo NUM_SHARDS."
    )

    @model_validator(mode="after")
    def _shard_exists(self) -> Self:
        if self.ordinal is not None and "shard" in self.model_fields_set:
            raise ValueError(f"MOONSHARD_SHARD={self.shard} and MOONSHARD_ORDINAL={self.ordinal}: only one may be set")
        if self.shard >= self.num_shards:
            raise ValueError(f"MOONSHARD_SHARD={self.shard} is outside 0..{self.num_shards - 1}")
        return self
