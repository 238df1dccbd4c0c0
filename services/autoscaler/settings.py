"""Settings of the autoscaler."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from services.autoscaler.policy import Limits, Role, Timing
from services.runtime.settings import OptionalAddress, Places, ServiceSettings

TARGETS: Mapping[Role, int] = {"tokenizer": 256, "vision": 4, "prefill": 8192, "decode": 32, "expert": 128}
WORKLOAD = re.compile(r"(statefulset|deployment)/[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class RoleSettings(BaseModel):
    """One role: what runs it, and how many there may be.

    workload  "statefulset/NAME" or "deployment/NAME"; empty where the mode needs none
    shards    pods of one replica
    target    load of one replica; None: the role's default
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str = ""
    shards: PositiveInt = 1
    min: NonNegativeInt = 0
    max: PositiveInt = 1
    target: PositiveInt | None = None

    @field_validator("workload")
    @classmethod
    def _is_a_workload(cls, text: str) -> str:
        if text and not WORKLOAD.fullmatch(text):
            raise ValueError(f"{text!r} is neither statefulset/NAME nor deployment/NAME")
        return text

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self


class AutoscalerSettings(ServiceSettings):
    """One field per MOONSHARD_* variable."""

    mode: Literal["builtin", "keda", "local"] = Field(
        description="builtin: sets replicas through the Kubernetes API; keda: advises KEDA; local: `moonshard up`."
    )
    gateways: Annotated[Places, Field(min_length=1)] = Field(
        description="Demand addresses of the gateways; host:port, unix:/path or dns:NAME:PORT, separated by commas."
    )
    roles: Annotated[dict[Role, RoleSettings], Field(min_length=1)] = Field(
        description="JSON object: role to {workload, shards, min, max, target}."
    )
    discover_s: PositiveFloat = Field(2.0, description="Interval between two look-ups of a DNS name.")

    idle_s: PositiveFloat = Field(300.0, description="Time without demand before a role is scaled to zero.")
    down_s: PositiveFloat = Field(
        120.0, description="Time for which fewer replicas must have been enough before some are removed."
    )
    startup_s: PositiveFloat = Field(
        3600.0, description="Time that the first replica of a role may take to become ready."
    )
    decide_s: PositiveFloat = Field(2.0, description="Longest interval between two decisions.")

    probe_listen: OptionalAddress = Field("", description="host:port of GET /health and /live. Empty: none.")

    namespace: str = Field("", description="Mode builtin: namespace of the workloads and the Lease.")
    lease: str = Field("", description="Mode builtin: name of the Lease.")
    lease_s: PositiveFloat = Field(
        15.0, description="Mode builtin: time after which a Lease that is not renewed is lost."
    )
    api_server: str = Field(
        "", description="Mode builtin: URL of the Kubernetes API. Empty: the cluster that this pod runs in."
    )
    api_s: PositiveFloat = Field(10.0, description="Mode builtin: timeout of one API call.")

    control: str = Field("", description="Mode local: path of the supervisor's socket.")

    @model_validator(mode="after")
    def _mode_has_what_it_needs(self) -> Self:
        needs = {"builtin": ("namespace", "lease", "instance"), "keda": (), "local": ("control",)}[self.mode]
        for name in needs:
            if not getattr(self, name):
                raise ValueError(f"MOONSHARD_{name.upper()} is not set, which MOONSHARD_MODE={self.mode} needs")
        bare = [role for role, of in self.roles.items() if not of.workload]
        if self.mode == "builtin" and bare:
            raise ValueError(f"MOONSHARD_ROLES: {bare[0]} has no workload")
        return self

    @property
    def limits(self) -> dict[Role, Limits]:
        """By role."""
        return {
            role: Limits(of.min, of.max, of.target if of.target is not None else TARGETS[role])
            for role, of in self.roles.items()
        }

    @property
    def timing(self) -> Timing:
        """Of all roles."""
        return Timing(self.idle_s, self.down_s, self.startup_s)
