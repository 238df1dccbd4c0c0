"""Replicas on demand: the autoscaler's own end of the socket orders them, real processes start and end."""

import asyncio
import contextlib
import dataclasses

import pytest

from services.autoscaler.local import LocalBackend
from services.autoscaler.policy import Current
from services.local.scaling import Scaling
from services.runtime.errors import Unavailable
from tests.services.local.standins import SERVE, STOP_CLEANLY, python, supervised
from tests.waiting import until

REPLICAS = (("decode-0", 0), ("decode-1", 1), ("expert-0-0", 0), ("expert-0-1", 0))


def specs(tmp_path):
    found = [python("gateway", STOP_CLEANLY + SERVE, tmp_path)]
    for name, replica in REPLICAS:
        spec = python(name, STOP_CLEANLY + SERVE, tmp_path)
        found.append(dataclasses.replace(spec, role=name.partition("-")[0], replica=replica))
    return found


@contextlib.asynccontextmanager
async def scaled(tmp_path):
    """Yield a started supervisor, its scaling, and the socket on which it takes orders."""
    async with supervised(specs(tmp_path), tmp_path) as (supervisor, _):
        scaling = Scaling(supervisor, tmp_path / "control")
        await supervisor.start(stall_s=20)
        await scaling.open()
        try:
            yield supervisor, scaling, str(tmp_path / "control")
        finally:
            await scaling.close()


@contextlib.asynccontextmanager
async def connected(control):
    backend = LocalBackend(control)
    running = asyncio.create_task(backend.run())
    await until(lambda: backend.current)
    try:
        yield backend
    finally:
        running.cancel()
        await asyncio.wait([running])


def running(supervisor):
    return {name for name, child in supervisor.children.items() if child.pid is not None}


async def test_replicas_follow_orders(tmp_path):
    async with scaled(tmp_path) as (supervisor, _, control), connected(control) as autoscaler:
        assert autoscaler.current == {"decode": Current(0, 0), "expert": Current(0, 0)}
        assert running(supervisor) == {"gateway"}
        await autoscaler.scale("decode", 2)
        await until(lambda: autoscaler.current["decode"] == Current(replicas=2, ready=2))
        assert running(supervisor) == {"gateway", "decode-0", "decode-1"}
        await autoscaler.scale("decode", 1)
        await until(lambda: autoscaler.current["decode"] == Current(replicas=1, ready=1))
        await until(lambda: running(supervisor) == {"gateway", "decode-0"})
        await autoscaler.scale("decode", 0)
        await until(lambda: running(supervisor) == {"gateway"})
        assert not any(child.killed for child in supervisor.children.values())


async def test_a_replica_serves_when_all_its_processes_do(tmp_path):
    async with scaled(tmp_path) as (supervisor, scaling, _):
        scaling.order("expert", 1)
        await until(lambda: scaling.state()["expert"]["ready"] == 1)
        supervisor.children["expert-0-1"].hold()
        supervisor.children["expert-0-1"].signal(9)
        await until(lambda: scaling.state()["expert"] == {"replicas": 1, "ready": 0})


async def test_a_replica_that_is_ordered_while_it_ends_starts_again(tmp_path):
    async with scaled(tmp_path) as (supervisor, scaling, _):
        child = supervisor.children["decode-0"]
        scaling.order("decode", 1)
        await until(lambda: child.is_ready)
        scaling.order("decode", 0)
        await until(lambda: child.is_asleep)
        scaling.order("decode", 1)
        await until(lambda: child.is_ready)
        assert child.exit_codes == [0]


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0, 1), (0, 2, 1)])
async def test_the_latest_of_several_orders_counts(tmp_path, numbers):
    async with scaled(tmp_path) as (supervisor, scaling, _):
        scaling.order("decode", 1)
        await until(lambda: scaling.state()["decode"]["ready"] == 1)
        for number in numbers:
            scaling.order("decode", number)
        await asyncio.sleep(0.3)
        await until(lambda: scaling.state()["decode"] == {"replicas": 1, "ready": 1})
        assert running(supervisor) == {"gateway", "decode-0"}


async def test_an_autoscaler_that_comes_back_learns_the_state(tmp_path):
    async with scaled(tmp_path) as (supervisor, _, control):
        async with connected(control) as autoscaler:
            await autoscaler.scale("decode", 1)
            await until(lambda: autoscaler.current["decode"] == Current(replicas=1, ready=1))
        async with connected(control) as another:
            assert another.current["decode"] == Current(replicas=1, ready=1)
        assert running(supervisor) == {"gateway", "decode-0"}


async def test_no_order_without_a_supervisor(tmp_path):
    with pytest.raises(Unavailable, match="does not answer"):
        await LocalBackend(str(tmp_path / "control")).scale("decode", 1)
