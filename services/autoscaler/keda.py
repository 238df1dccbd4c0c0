"""KEDA's external-push scaler: KEDA sets the numbers, this service says which (protos/externalscaler.proto)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from protos import externalscaler_pb2 as pb
from protos import externalscaler_pb2_grpc
from services.autoscaler.policy import Current, Role
from services.autoscaler.scaler import Scaler
from services.runtime.errors import InvalidRequest

log = logging.getLogger(__name__)

EVERY_S = 10.0  # at least so often an open stream says something


class KedaBackend:
    """A Backend that changes nothing: what was decided counts as there, until KEDA has done it.

    So the policy sees no failing starts. That is KEDA's to watch; a path that starts is kept by its held requests.
    """

    def __init__(self, roles: Mapping[Role, int]) -> None:
        self.changed = asyncio.Event()
        self._current = {role: Current(minimum, minimum) for role, minimum in roles.items()}

    @property
    def current(self) -> Mapping[Role, Current]:
        """As decided last."""
        return self._current

    def is_installed(self, minimum: Mapping[Role, int]) -> bool:
        """KEDA watches the pods, this process does not."""
        return True

    async def scale(self, role: Role, replicas: int) -> None:
        self._current[role] = Current(replicas, replicas)

    async def run(self) -> None:
        """Nothing to keep fresh."""
        await asyncio.get_running_loop().create_future()


class ExternalScaler(externalscaler_pb2_grpc.ExternalScalerServicer):
    """Answers KEDA, for the role that a trigger's metadata names."""

    def __init__(self, scaler: Scaler, shards: Mapping[Role, int]) -> None:
        self._scaler = scaler
        self._shards = shards

    async def IsActive(self, request: pb.ScaledObjectRef, context: Any) -> pb.IsActiveResponse:
        return pb.IsActiveResponse(result=self._pods(request) > 0)

    async def StreamIsActive(self, request: pb.ScaledObjectRef, context: Any) -> AsyncIterator[pb.IsActiveResponse]:
        while True:
            decided = self._scaler.decided
            active = self._pods(request) > 0
            yield pb.IsActiveResponse(result=active)
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    while (self._pods(request) > 0) == active:
                        await decided.wait()
                        decided = self._scaler.decided

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Any) -> pb.GetMetricSpecResponse:
        spec = pb.MetricSpec(metricName=f"moonshard-pods-{self._role(request)}", targetSize=1, targetSizeFloat=1)
        return pb.GetMetricSpecResponse(metricSpecs=[spec])

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Any) -> pb.GetMetricsResponse:
        pods = self._pods(request.scaledObjectRef)
        value = pb.MetricValue(metricName=request.metricName, metricValue=pods, metricValueFloat=pods)
        return pb.GetMetricsResponse(metricValues=[value])

    def _pods(self, request: pb.ScaledObjectRef) -> int:
        role = self._role(request)
        return self._scaler.desired.get(role, 0) * self._shards[role]

    def _role(self, request: pb.ScaledObjectRef) -> Role:
        named = request.scalerMetadata.get("role", "")
        for role in self._shards:
            if role == named:
                return role
        known = ", ".join(self._shards)
        raise InvalidRequest(f"the trigger's metadata has role: {named!r}, known are {known}", field="role")
