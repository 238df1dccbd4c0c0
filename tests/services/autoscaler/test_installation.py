"""The autoscaler after `helm install`: from one pod of each rendered workload to whole replicas, to zero and back."""

import json
from contextlib import asynccontextmanager

import pytest

from services.autoscaler.policy import Current
from tests.helm.rendering import environment, merged, objects, overlay, processes
from tests.services.autoscaler.api_server import ApiServer
from tests.services.autoscaler.gateway import Gateway
from tests.services.autoscaler.test_kubernetes import autoscaler
from tests.waiting import until

SHARDS = {"prefill": 2, "decode": 3, "expert": 4}
SHARDED = {
    "prefill": {"shards": 2, "minReplicas": 0, "maxReplicas": 2, "targetQueuedTokens": 1000},
    "decode": {"shards": 3, "minReplicas": 0, "maxReplicas": 2, "targetGenerations": 10},
    "expert": {"shards": 4, "minReplicas": 1, "maxReplicas": 2, "targetGenerations": 20},
}
TO_ZERO = merged(SHARDED, {"expert": {"minReplicas": 0, "scaleToZero": True}})
TWO = merged(SHARDED, {role: {"minReplicas": 2} for role in SHARDED})


@asynccontextmanager
async def installation(values, ready_s=0.0):
    """An API server that holds what the chart renders, a gateway, and the autoscaler with the rendered roles."""
    rendered = objects(values)
    assert not any("replicas" in one["spec"] for one in rendered if one["metadata"]["name"] == "moonshard-expert")
    roles = json.loads(environment(processes(values)["autoscaler"])["MOONSHARD_ROLES"])
    async with ApiServer() as api, Gateway() as gateway:
        api.ready_s = ready_s
        for one in rendered:
            if one["kind"] in {"StatefulSet", "Deployment"}:
                await api.apply(one)
        gateway.say(prefill=0, decode=0)
        async with autoscaler(api, gateway, roles=roles) as scaler:
            yield api, gateway, scaler


def pods(api):
    return {role: api.replicas(f"statefulsets/moonshard-{role}") for role in SHARDS}


def whole(**replicas):
    return {role: number * SHARDS[role] for role, number in replicas.items()}


@pytest.mark.parametrize("values", [pytest.param(overlay("nano"), id="nano"), pytest.param({}, id="defaults")])
async def test_all_expert_shards_of_the_minimum_exist_without_any_request(values):
    shards = json.loads(environment(processes(values)["autoscaler"])["MOONSHARD_ROLES"])["expert"]["shards"]
    async with installation(values) as (api, _, _):
        await until(lambda: pods(api)["expert"] == shards)


async def test_every_role_gets_all_shards_of_its_minimum():
    async with installation(TWO) as (api, _, _):
        await until(lambda: pods(api) == whole(prefill=2, decode=2, expert=2))


async def test_a_part_of_a_replica_without_a_minimum_is_removed():
    async with installation(SHARDED) as (api, _, _):
        await until(lambda: pods(api) == whole(prefill=0, decode=0, expert=1))


async def test_a_part_of_a_replica_is_completed_by_the_first_request():
    async with installation(TO_ZERO) as (api, gateway, _):
        gateway.say(prefill=1, decode=1)
        await until(lambda: pods(api) == whole(prefill=1, decode=1, expert=1))


async def test_up_down_to_zero_and_back():
    async with installation(TO_ZERO) as (api, gateway, _):
        gateway.say(prefill=1, decode=1)
        await until(lambda: pods(api) == whole(prefill=1, decode=1, expert=1))
        gateway.say(prefill=15, decode=15)
        await until(lambda: pods(api) == whole(prefill=2, decode=2, expert=2))
        gateway.say(prefill=1, decode=1)
        await until(lambda: pods(api) == whole(prefill=1, decode=1, expert=1))
        gateway.say(prefill=0, decode=0)
        await until(lambda: pods(api) == whole(prefill=0, decode=0, expert=0))
        gateway.say(prefill=1, decode=1)
        await until(lambda: pods(api) == whole(prefill=1, decode=1, expert=1))
    scaled = [(key.rpartition("-")[2], number) for verb, key, number in api.writes if verb == "scale"]
    parts = [(role, number) for role, number in scaled if role in SHARDS and number % SHARDS[role]]
    assert parts == []


@pytest.mark.parametrize("role", SHARDS)
async def test_pods_that_somebody_added_or_removed_become_whole_again(role):
    async with installation(TWO) as (api, _, _):
        await until(lambda: pods(api) == whole(prefill=2, decode=2, expert=2))
        for number in (1, 2 * SHARDS[role] - 1, 2 * SHARDS[role] + 1):
            await api.set_replicas(f"statefulsets/moonshard-{role}", number)
            await until(lambda: pods(api) == whole(prefill=2, decode=2, expert=2))


async def test_nothing_is_removed_while_demand_is_unknown():
    async with installation(SHARDED) as (api, gateway, scaler):
        await until(lambda: pods(api) == whole(prefill=0, decode=0, expert=1))
        await gateway.stop()
        await until(lambda: scaler._gateways.demand is None)
        await api.set_replicas("statefulsets/moonshard-expert", 5)
        await until(lambda: scaler._backend.current["expert"] == Current(1, 1, 1))
        scaler._backend.changed.set()
        await until(lambda: not scaler._backend.changed.is_set())
        assert pods(api)["expert"] == 5


async def test_an_installation_without_its_minimum_is_not_installed():
    minimum = {"prefill": 0, "decode": 0, "expert": 1, "vision": 0}
    async with installation(SHARDED, ready_s=0.5) as (api, _, scaler):
        backend = scaler._backend
        assert not backend.is_installed(minimum), "nothing is known yet"
        await until(lambda: pods(api) == whole(prefill=0, decode=0, expert=1))
        assert not backend.is_installed(minimum), "four pods that are not ready yet"
        await until(lambda: backend.is_installed(minimum))
