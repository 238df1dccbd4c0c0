"""The autoscaler against the Kubernetes API: it scales, and recovers from whatever the API does to it."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from services.autoscaler.gateways import Gateways
from services.autoscaler.kubernetes import kubernetes_backend
from services.autoscaler.scaler import Scaler
from services.autoscaler.settings import AutoscalerSettings
from tests.services.autoscaler.api_server import NAMESPACE, ApiServer
from tests.services.autoscaler.gateway import Gateway
from tests.waiting import until

LEASE = "moonshard-autoscaler"
ROLES = {
    "prefill": {"workload": "statefulset/prefill", "shards": 2, "max": 2},
    "decode": {"workload": "statefulset/decode", "max": 3, "target": 10},
    "expert": {"workload": "statefulset/expert", "shards": 3},
    "vision": {"workload": "deployment/vision"},
}
PATH = {"statefulsets/prefill": 2, "statefulsets/decode": 1, "statefulsets/expert": 3}


@pytest.fixture
async def api():
    async with ApiServer() as api:
        for of in ROLES.values():
            kind, _, name = of["workload"].partition("/")
            await api.add(f"{kind}s", name)
        yield api


@pytest.fixture
async def gateway():
    async with Gateway() as gateway:
        gateway.say(prefill=0, decode=0)
        yield gateway


@asynccontextmanager
async def autoscaler(api, gateway, instance="autoscaler-0", **given):
    settings = AutoscalerSettings(
        **{
            "listen": "127.0.0.1:0",
            "mode": "builtin",
            "gateways": gateway.address,
            "roles": ROLES,
            "namespace": NAMESPACE,
            "lease": LEASE,
            "instance": instance,
            "api_server": api.url,
            "idle_s": 0.5,
            "down_s": 0.3,
            "decide_s": 0.1,
            "lease_s": 1.0,
            "api_s": 5.0,
            **given,
        }
    )
    async with kubernetes_backend(settings) as backend:
        gateways = Gateways(settings.gateways, settings.discover_s)
        scaler = Scaler(gateways, backend, settings.limits, settings.timing, settings.decide_s)
        running = asyncio.create_task(scaler.run())
        try:
            yield scaler
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def asked(api) -> dict[str, int]:
    return {key: api.replicas(key) for key in PATH}


async def awake(api):
    await until(lambda: asked(api) == PATH)


async def asleep(api):
    await until(lambda: not any(asked(api).values()))


@pytest.mark.slow
async def test_from_zero_and_back(api, gateway):
    async with autoscaler(api, gateway):
        await until(lambda: ("lease", f"leases/{LEASE}", "autoscaler-0") in api.writes)
        gateway.say(prefill=1, decode=1)
        await awake(api)
        gateway.say(prefill=0, decode=25)
        await until(lambda: api.replicas("statefulsets/decode") == 3)
        gateway.say(prefill=0, decode=5)
        await until(lambda: api.replicas("statefulsets/decode") == 1)
        gateway.say(prefill=0, decode=0, vision=0)
        await asleep(api)
    scaled = [write for write in api.writes if write[0] == "scale"]
    assert {key for _, key, _ in scaled[:3]} == {*PATH}, "the whole path, before anything else"
    assert "deployments/vision" not in {key for _, key, _ in scaled}
    assert api.lease(LEASE)["holderIdentity"] in ("", None), "released at the end"


async def test_conflicts(api, gateway):
    async with autoscaler(api, gateway):
        await until(lambda: api.writes)
        api.conflicts = 4
        gateway.say(prefill=1, decode=1)
        await awake(api)
        assert api.conflicts == 0


async def test_somebody_else_scales(api, gateway):
    async with autoscaler(api, gateway):
        gateway.say(prefill=1, decode=1)
        await awake(api)
        await api.set_replicas("statefulsets/decode", 0)
        await until(lambda: api.replicas("statefulsets/decode") == 1)


async def test_an_expired_watch(api, gateway):
    async with autoscaler(api, gateway):
        gateway.say(prefill=1, decode=1)
        await awake(api)
        listed = api.calls["GET statefulsets"]
        await api.compact()
        await until(lambda: api.calls["GET statefulsets"] >= listed + 3)
        gateway.say(prefill=0, decode=25)
        await until(lambda: api.replicas("statefulsets/decode") == 3)


@pytest.mark.slow
async def test_too_many_requests(api, gateway):
    async with autoscaler(api, gateway):
        await until(lambda: api.writes)
        api.pauses = 6
        gateway.say(prefill=1, decode=1)
        await awake(api)
        assert api.pauses == 0


@pytest.mark.slow
async def test_slow_answers(api, gateway):
    """Slower than a call may take: nothing is decided in the dark, and all is well when the server is."""
    async with autoscaler(api, gateway, api_s=0.3):
        gateway.say(prefill=1, decode=1)
        await awake(api)
        api.delay_s = 1.0
        gateway.say(prefill=0, decode=25)
        await asyncio.sleep(1.5)
        assert api.replicas("statefulsets/decode") == 1
        api.delay_s = 0.0
        await until(lambda: api.replicas("statefulsets/decode") == 3)


async def test_a_workload_that_is_not_there(api, gateway):
    await api.remove("statefulsets", "prefill")
    async with autoscaler(api, gateway):
        gateway.say(prefill=1, decode=1)
        await until(lambda: api.replicas("statefulsets/decode") and api.replicas("statefulsets/expert"))
        await api.add("statefulsets", "prefill")
        await until(lambda: api.replicas("statefulsets/prefill") == 2)


async def test_only_one_decides_and_another_takes_over(api, gateway):
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(AsyncExitStack())
        await leader.enter_async_context(autoscaler(api, gateway, "autoscaler-0"))
        await until(lambda: api.writes)
        standby = await stack.enter_async_context(autoscaler(api, gateway, "autoscaler-1"))
        gateway.say(prefill=1, decode=1)
        await awake(api)
        assert not standby.desired
        assert {holder for what, _, holder in api.writes if what == "lease"} == {"autoscaler-0"}
        await leader.aclose()
        await until(lambda: api.lease(LEASE)["holderIdentity"] == "autoscaler-1")
        gateway.say(prefill=0, decode=25)
        await until(lambda: api.replicas("statefulsets/decode") == 3)
        assert api.lease(LEASE)["leaseTransitions"] == 1


async def test_the_lease_of_the_chart_is_taken_and_kept(api, gateway):
    await api.add_lease(LEASE)
    async with autoscaler(api, gateway):
        gateway.say(prefill=1, decode=1)
        await awake(api)
        assert api.lease(LEASE)["holderIdentity"] == "autoscaler-0"


@pytest.mark.slow
async def test_a_lease_that_is_not_renewed_expires(api, gateway):
    await api.take_lease(LEASE, "one-that-died")
    async with autoscaler(api, gateway):
        gateway.say(prefill=1, decode=1)
        await awake(api)
        assert api.lease(LEASE)["holderIdentity"] == "autoscaler-0"


@pytest.mark.slow
async def test_a_lease_that_was_created_in_the_same_moment(api, gateway):
    api.conflicts = 1
    async with autoscaler(api, gateway):
        gateway.say(prefill=1, decode=1)
        await until(lambda: api.lease(LEASE)["holderIdentity"] == "autoscaler-0")
        await awake(api)


@pytest.mark.slow
async def test_a_leader_that_lost_its_lease_stops_deciding(api, gateway):
    async with autoscaler(api, gateway) as scaler:
        gateway.say(prefill=1, decode=1)
        await awake(api)

        async def keep():
            while True:
                await api.take_lease(LEASE, "another")
                await asyncio.sleep(0.05)

        keeping = asyncio.create_task(keep())
        await until(lambda: not scaler._backend.current)
        gateway.say(prefill=0, decode=25)
        await asyncio.sleep(0.5)
        assert api.replicas("statefulsets/decode") == 1
        keeping.cancel()
        await until(lambda: api.replicas("statefulsets/decode") == 3)


@pytest.mark.slow
async def test_a_gateway_that_is_silent_takes_nothing_away(api, gateway):
    async with autoscaler(api, gateway):
        gateway.say(prefill=1, decode=1)
        await awake(api)
        await gateway.stop()
        await asyncio.sleep(1.2)
        assert asked(api) == PATH
        gateway.say(prefill=0, decode=0)
        await gateway.start()
        await asleep(api)


@pytest.mark.slow
async def test_a_path_that_starts_is_kept(api, gateway):
    api.ready_s = 1.5
    async with autoscaler(api, gateway):
        gateway.say(prefill=1, decode=1)
        await awake(api)
        gateway.say(prefill=0, decode=0)
        await asyncio.sleep(1.0)
        assert asked(api) == PATH, "longer than the cool-down, but it still starts"
        await asleep(api)
