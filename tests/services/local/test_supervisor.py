"""Processes start together, restart after a crash, fail for good after too many crashes, and stop in order."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from services.local.child import ProcessFailed
from services.local.child_state import ChildState
from services.local.processes import StopStage
from services.local.restart import RestartPolicy
from tests.services.local.standins import IGNORE_SIGTERM, SERVE, STOP_CLEANLY, python, supervised
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]


async def test_all_start_at_once_and_stop_in_order(tmp_path):
    specs = [
        python("store", STOP_CLEANLY + SERVE, tmp_path, stage=StopStage.STORE),
        python("engine", STOP_CLEANLY + SERVE, tmp_path, stage=StopStage.ENGINE),
        python("gateway", STOP_CLEANLY + SERVE, tmp_path, stage=StopStage.GATEWAY),
    ]
    async with supervised(specs, tmp_path) as (supervisor, notes):
        await supervisor.start(stall_s=20)
        assert {child.state for child in supervisor.children.values()} == {ChildState.READY}
        pids = [child.pid for child in supervisor.children.values()]
        await supervisor.stop()
    assert [event[1] for event in notes.events[:3]] == ["store", "engine", "gateway"]
    assert [event for event in notes.events if event[0] == "stopped"] == [
        ("stopped", "gateway", "with exit code 0"),
        ("stopped", "engine", "with exit code 0"),
        ("stopped", "store", "with exit code 0"),
    ]
    # Output written at the end was still read.
    assert sorted(record.process for record in notes.records) == ["engine", "gateway", "store"]
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_killed_process_comes_back(tmp_path):
    async with supervised([python("part", SERVE, tmp_path)], tmp_path) as (supervisor, notes):
        await supervisor.start(stall_s=20)
        part = supervisor.children["part"]
        first_pid = part.pid
        part.signal(signal.SIGKILL)
        await until(lambda: part.exit_codes and part.is_ready)
        assert part.pid not in (None, first_pid)
        assert part.exit_codes == [-signal.SIGKILL]
    kinds = [event[0] for event in notes.events]
    assert kinds == ["started", "ready", "crashed", "started", "ready", "stopped"]
    assert ("crashed", "part", "by SIGKILL") in notes.events


async def test_held_process_stays_down_until_released(tmp_path):
    async with supervised([python("part", SERVE, tmp_path)], tmp_path) as (supervisor, _):
        await supervisor.start(stall_s=20)
        part = supervisor.children["part"]
        part.hold()
        part.signal(signal.SIGKILL)
        await until(lambda: part.state is ChildState.RESTARTING)
        await asyncio.sleep(0.1)
        assert part.pid is None
        part.wake()
        await until(lambda: part.is_ready)


async def test_crash_loop_ends_with_the_last_lines(tmp_path):
    code = "import sys; sys.exit('the disk is on fire')"
    async with supervised([python("part", code, tmp_path), python("other", SERVE, tmp_path)], tmp_path) as (
        supervisor,
        notes,
    ):
        with pytest.raises(ProcessFailed, match="part ended 3 times, the last time with exit code 1") as failed:
            await supervisor.start(stall_s=20)
    assert "the disk is on fire" in str(failed.value.last_lines[-1])
    assert sum(event[:2] == ("started", "part") for event in notes.events) == 3


async def test_crash_loop_of_a_process_that_served(tmp_path):
    policy = RestartPolicy(max_crashes=3, first_pause_s=0.01)
    async with supervised([python("part", SERVE, tmp_path)], tmp_path, policy) as (supervisor, _):
        await supervisor.start(stall_s=20)
        part = supervisor.children["part"]
        for crash in range(3):
            await until(lambda: part.is_ready)
            part.signal(signal.SIGKILL)
            await until(lambda crash=crash: len(part.exit_codes) > crash)
        failure = await asyncio.wait_for(supervisor.failure(), 10)
        assert str(failure) == "part ended 3 times, the last time by SIGKILL"


async def test_refusal_is_not_repeated(tmp_path):
    code = "import sys; print('layer 3 is missing', file=sys.stderr); sys.exit(2)"
    async with supervised([python("part", code, tmp_path)], tmp_path) as (supervisor, notes):
        with pytest.raises(ProcessFailed, match="part refused to start") as failed:
            await supervisor.start(stall_s=20)
    assert [str(record) for record in failed.value.last_lines] == ["layer 3 is missing"]
    assert notes.events == [("started", "part")]


async def test_process_that_never_serves(tmp_path):
    specs = [python("slow", "import time; print('loading', flush=True); time.sleep(60)", tmp_path)]
    async with supervised(specs, tmp_path) as (supervisor, notes):
        with pytest.raises(ProcessFailed, match=r"slow does not serve, and nothing got further for 0\.5 s"):
            await supervisor.start(stall_s=0.5)
    assert notes.events[-1] == ("stopped", "slow", "by SIGTERM")


LOAD = """
import json, pathlib, sys, time
for step in range(STEPS):
    print(json.dumps({"msg": "loading weights", "bytes_loaded": step * 10, "bytes_expected": 100}), flush=True)
    time.sleep(0.2)
"""


@pytest.mark.slow
async def test_a_process_that_loads_may_take_longer_than_a_start_without_progress(tmp_path):
    specs = [python("large", LOAD.replace("STEPS", "11") + SERVE, tmp_path)]
    async with supervised(specs, tmp_path) as (supervisor, _):
        start = asyncio.create_task(supervisor.start(stall_s=1))
        child = supervisor.children["large"]
        await until(lambda: str(child.loading) == "50 %")
        await asyncio.wait_for(start, 20)
        assert child.loading is None


@pytest.mark.slow
async def test_a_process_that_stops_loading_is_given_up(tmp_path):
    specs = [python("stuck", LOAD.replace("STEPS", "4") + "time.sleep(60)", tmp_path)]
    async with supervised(specs, tmp_path) as (supervisor, _):
        with pytest.raises(ProcessFailed, match=r"stuck does not serve, and nothing got further for 1 s"):
            await asyncio.wait_for(supervisor.start(stall_s=1), 20)
        assert str(supervisor.children["stuck"].loading) == "30 %"


async def test_program_that_does_not_exist(tmp_path):
    spec = python("part", SERVE, tmp_path)
    missing = type(spec)("part", ("/no/such/program",), spec.ready)
    async with supervised([missing], tmp_path) as (supervisor, _):
        with pytest.raises(ProcessFailed) as failed:
            await supervisor.start(stall_s=20)
    assert "cannot start /no/such/program" in str(failed.value.last_lines[-1])


async def test_hanging_process_is_killed_after_its_grace(tmp_path):
    async with supervised([python("part", IGNORE_SIGTERM + SERVE, tmp_path, grace_s=0.3)], tmp_path) as (
        supervisor,
        notes,
    ):
        await supervisor.start(stall_s=20)
        await supervisor.stop()
        assert supervisor.children["part"].killed
    assert notes.events[-1] == ("stopped", "part", "killed")


async def test_hurry_ends_the_grace(tmp_path):
    async with supervised([python("part", IGNORE_SIGTERM + SERVE, tmp_path, grace_s=60)], tmp_path) as (supervisor, _):
        await supervisor.start(stall_s=20)
        began = time.monotonic()
        stopping = asyncio.create_task(supervisor.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        supervisor.hurry()
        await stopping
        assert time.monotonic() - began < 10


async def test_stop_before_anything_has_started(tmp_path):
    async with supervised([python("part", SERVE, tmp_path)], tmp_path) as (supervisor, _):
        starting = asyncio.create_task(supervisor.start(stall_s=20))
        await asyncio.sleep(0)
        await supervisor.stop()
        starting.cancel()


HAS_A_CHILD = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[-1] + ".pid").write_text(str(child.pid))
pathlib.Path(sys.argv[-1]).touch()
child.wait()
"""


async def test_children_of_a_process_go_with_it(tmp_path):
    async with supervised([python("part", HAS_A_CHILD, tmp_path)], tmp_path) as (supervisor, _):
        await supervisor.start(stall_s=20)
        grandchild = int((tmp_path / "part.ready.pid").read_text())
        assert not is_gone(grandchild)
        began = time.monotonic()
        await supervisor.stop()
        # The child still has the output pipe open; that must not delay the end.
        assert time.monotonic() - began < 5
    await until(lambda: is_gone(grandchild))


SUPERVISOR_THAT_IS_KILLED = """
import asyncio, os, pathlib, sys
sys.path.insert(0, sys.argv[1])
from services.local.cluster_log import ClusterLog
from services.local.supervisor import Supervisor
from tests.services.local.standins import IGNORE_SIGTERM, SERVE, Notes, python

async def main():
    folder = pathlib.Path(sys.argv[2])
    specs = [python(name, IGNORE_SIGTERM + SERVE, folder) for name in ("one", "two")]
    supervisor = Supervisor(specs, dict(os.environ), ClusterLog(folder / "cluster.log"), Notes())
    await supervisor.start(20)
    print(*(child.pid for child in supervisor.children.values()), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_processes_die_with_a_supervisor_that_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR_THAT_IS_KILLED, str(ROOT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        pids = [int(pid) for pid in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(is_gone(pid) for pid in pids)
        supervisor.kill()
    asyncio.run(until(lambda: all(is_gone(pid) for pid in pids)))


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
