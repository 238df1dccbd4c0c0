"""KEDA's contract over a real channel: the same numbers as the policy's, pushed as soon as they are decided."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from protos import externalscaler_pb2 as pb
from protos.externalscaler_pb2_grpc import ExternalScalerStub, add_ExternalScalerServicer_to_server
from services.autoscaler.gateways import Gateways
from services.autoscaler.keda import ExternalScaler, KedaBackend
from services.autoscaler.policy import Limits, Timing
from services.autoscaler.scaler import Scaler
from services.runtime.channels import open_channel
from services.runtime.errors import InvalidRequest
from services.runtime.server import start_server
from tests.services.autoscaler.gateway import Gateway

LIMITS = {"prefill": Limits(0, 2, 1000), "decode": Limits(0, 3, 10), "expert": Limits(0, 1, 100)}
SHARDS = {"prefill": 1, "decode": 2, "expert": 4}


@asynccontextmanager
async def keda(gateway):
    """What KEDA calls."""
    scaler = Scaler(
        Gateways([gateway.address], 1.0),
        KedaBackend(dict.fromkeys(LIMITS, 0)),
        LIMITS,
        Timing(idle_s=0.5, down_s=0.3, startup_s=60),
        0.1,
    )
    running = asyncio.create_task(scaler.run())
    servicer = ExternalScaler(scaler, SHARDS)
    server, address = await start_server(lambda server: add_ExternalScalerServicer_to_server(servicer, server))
    try:
        async with open_channel(address) as channel:
            yield ExternalScalerStub(channel)
    finally:
        await server.stop(None)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def trigger(role):
    return pb.ScaledObjectRef(name="m", namespace="n", scalerMetadata={"role": role, "scalerAddress": "x"})


async def pods(stub, role):
    asked = pb.GetMetricsRequest(scaledObjectRef=trigger(role), metricName=f"moonshard-pods-{role}")
    (value,) = (await stub.GetMetrics(asked)).metricValues
    assert value.metricName == asked.metricName
    return value.metricValue


async def test_numbers_and_pushes():
    async with Gateway() as gateway, keda(gateway) as stub:
        gateway.say(prefill=0, decode=0)
        pushes = aiter(stub.StreamIsActive(trigger("decode")))
        assert not (await anext(pushes)).result
        assert not (await stub.IsActive(trigger("decode"))).result
        gateway.say(prefill=1, decode=1)
        async with asyncio.timeout(20):
            assert (await anext(pushes)).result, "pushed, without being asked"
            assert (await stub.IsActive(trigger("expert"))).result
            assert [await pods(stub, role) for role in SHARDS] == [1, 2, 4]
            gateway.say(prefill=0, decode=25)
            while await pods(stub, "decode") != 6:
                await asyncio.sleep(0.02)
            gateway.say(prefill=0, decode=0)
            assert not (await anext(pushes)).result, "after the cool-down"
            assert await pods(stub, "decode") == 0


async def test_the_metric():
    async with Gateway() as gateway, keda(gateway) as stub:
        (spec,) = (await stub.GetMetricSpec(trigger("prefill"))).metricSpecs
        assert (spec.metricName, spec.targetSize) == ("moonshard-pods-prefill", 1)


async def test_a_trigger_without_a_known_role():
    async with Gateway() as gateway, keda(gateway) as stub:
        for wrong in (trigger("deocde"), pb.ScaledObjectRef(name="m")):
            with pytest.raises(InvalidRequest, match="known are prefill, decode, expert"):
                await stub.IsActive(wrong)
