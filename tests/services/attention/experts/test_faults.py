"""Expert replicas that die, hang, drain or turn into something else: never a lost token, never a partial sum."""

import asyncio
import signal
import threading
from pathlib import Path

import pytest
import torch

from services.attention.experts.connection import STEADY_S
from services.attention.experts.in_flight import MAX_CALLS
from services.attention.experts.metrics import DROPPED_ANSWERS, REPEATED_CALLS
from services.runtime.errors import ExpertsUnavailable, WireError
from tests.services.attention.experts.dispatching import TRANSPORTS, assert_same, connected, dispatch, waiting
from tests.services.expert.serving import ExpertProcess, ServerThread, plain_sum, random_work, short_folder
from tests.waiting import until


async def drained(process):
    process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait) == 0
    process.wait_for("stopped")
    assert [line for line in process.lines if line["level"] not in ("debug", "info")] == []


class Streams:
    """Several callers that dispatch without a pause and compare every sum with the first one, which was checked."""

    def __init__(self, model, experts, num_streams=4):
        self.num_done = 0
        self._works = [random_work(model, 1 + 3 * i, seed=i) for i in range(num_streams)]
        self._expected = [plain_sum(model, 2, work) for work in self._works]
        self._experts = experts
        self._stop = False

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._run(i)) for i in range(len(self._works))]
        await self.progress()
        return self

    async def __aexit__(self, *_):
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def progress(self, timeout_s=60):
        goal = self.num_done + 40
        await until(lambda: self.num_done >= goal or any(task.done() for task in self._tasks), timeout_s)

    async def _run(self, index):
        first = None
        while not self._stop:
            total = await dispatch(self._experts, self._works[index], self.num_done)
            if first is None:
                assert_same(total, self._expected[index])
                first = total
            assert torch.equal(total, first)
            self.num_done += 1


@TRANSPORTS
@pytest.mark.slow
async def test_a_killed_replica_is_replaced_by_the_other_and_comes_back(stack, model, transport):
    folder = short_folder(stack)
    replicas = [ExpertProcess(model, f"unix:{folder}/{i}") for i in range(2)]
    for replica in replicas:
        stack.enter_context(replica)
    async with connected(model, [[r.address for r in replicas]], transport) as experts, Streams(model, experts) as load:
        replicas[0].kill()
        await load.progress()
        replicas[0].start()
        await until(lambda: experts._shards[0].replicas[0].live)
        replicas[1].kill()
        await load.progress()


@TRANSPORTS
@pytest.mark.slow
async def test_without_a_second_replica_callers_wait_for_the_restart(stack, model, transport):
    folder = short_folder(stack)
    only = stack.enter_context(ExpertProcess(model, f"unix:{folder}/0", 0, 2))
    other = stack.enter_context(ServerThread(model, f"unix:{folder}/1", 1, 2))
    async with connected(model, [[only.address], [other.address]], transport) as experts:
        work = random_work(model, 6)
        expected = await dispatch(experts, work)
        only.signal(signal.SIGSTOP)  # so that the frame is certainly in flight
        await until(lambda: all(thread_state(only.pid, thread) == "T" for thread in threads_of(only.pid)))
        result = asyncio.ensure_future(waiting(dispatch(experts, work, 1)))
        await asyncio.sleep(0.2)
        only.kill()
        await asyncio.sleep(0.2)
        assert not result.done()
        only.start()
        assert torch.equal(await result, expected)
        assert other.shard.num_calls == 2  # the shard that was well is not asked again


@TRANSPORTS
@pytest.mark.slow
async def test_sigterm_under_load_loses_nothing(stack, model, transport):
    folder = short_folder(stack)
    replicas = [ExpertProcess(model, f"unix:{folder}/{i}") for i in range(2)]
    for replica in replicas:
        stack.enter_context(replica)
    async with connected(model, [[r.address for r in replicas]], transport) as experts, Streams(model, experts) as load:
        await drained(replicas[0])
        await load.progress()
        # The last one goes as well, and comes back at the same place.
        await drained(replicas[1])
        replicas[1].start()
        await load.progress()


@TRANSPORTS
@pytest.mark.slow
async def test_draining_finishes_the_message_in_hand(stack, model, transport):
    folder = short_folder(stack)
    server = ServerThread(model, f"unix:{folder}/0")
    stack.enter_context(server)
    async with connected(model, [[server.address]], transport, deadline_s=60) as experts:
        before = repeats("lost")
        work = random_work(model, 200)  # too large for the event loop
        server.shard.hold()
        result = dispatch(experts, work)
        assert server.shard.entered.wait(60)
        server.stop()
        await asyncio.sleep(0.3)
        server.shard.release()
        assert_same(await result, plain_sum(model, 2, work))
        assert repeats("lost") == before
        await until(lambda: not experts._shards[0].replicas[0].live)


@TRANSPORTS
@pytest.mark.slow
async def test_a_replica_of_another_checkpoint_is_not_used_when_it_comes_back(stack, model, transport):
    folder = short_folder(stack)
    address = f"unix:{folder}/0"
    with ServerThread(model, address):
        connection = connected(model, [[address]], transport, deadline_s=1)
        experts = await connection.__aenter__()
    try:
        stack.enter_context(ServerThread(model, address, digest=b"\7" * 32))
        await until(lambda: experts._shards[0].replicas[0].refusal)
        with pytest.raises(ExpertsUnavailable, match="found 0707070707070707"):
            await dispatch(experts, random_work(model, 1))
    finally:
        await connection.__aexit__(None, None, None)


@TRANSPORTS
@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"not a frame at all", id="no-header"),
        pytest.param(b"MSEX" + bytes([2, 2, 0]) + bytes(57), id="another-version"),
        pytest.param(b"MSEX" + bytes([1, 3, 0]) + bytes(57) + b"what?", id="refusal-for-nobody"),
    ],
)
async def test_a_replica_that_talks_nonsense_is_left(stack, model, transport, garbage):
    folder = short_folder(stack)
    mad, sane = (stack.enter_context(ServerThread(model, f"unix:{folder}/{i}")) for i in range(2))
    mad.compute._answer = lambda frame: [garbage]
    async with connected(model, [[mad.address, sane.address]], transport) as experts:
        before = repeats("lost")
        work = random_work(model, 2)
        for step in range(4):
            total = await dispatch(experts, work, step)
            assert_same(total, plain_sum(model, 2, work))
        assert repeats("lost") > before


@TRANSPORTS
@pytest.mark.slow
async def test_answers_of_another_life_are_dropped(stack, model, transport):
    """A restarted attention process counts its calls from 1 again: the epoch tells its answers from older ones."""
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0"))
    answer = server.compute._answer
    server.compute._answer = lambda frame: [with_epoch(b"".join(answer(frame)), 7)]
    async with connected(model, [[server.address]], transport, deadline_s=1) as experts:
        before = DROPPED_ANSWERS._value.get()
        with pytest.raises(ExpertsUnavailable):
            await dispatch(experts, random_work(model, 2))
        assert DROPPED_ANSWERS._value.get() == before + 1


@TRANSPORTS
@pytest.mark.slow
async def test_a_suspect_is_trusted_again_once_it_answers_or_comes_back(stack, model, transport):
    folder = short_folder(stack)
    slow, fast = (stack.enter_context(ServerThread(model, f"unix:{folder}/{i}")) for i in range(2))
    async with connected(model, [[slow.address, fast.address]], transport, repeat_s=0.2) as experts:
        replica = experts._shards[0].replicas[0]
        slow.shard.hold()
        for step in range(2):  # replicas take turns
            await dispatch(experts, random_work(model, 2), step)
        assert replica.suspect
        slow.shard.release()
        await until(lambda: not replica.suspect, 5)
        replica.suspect = True
        replica.disconnect("a test")
        await until(lambda: replica.live and not replica.suspect, 5)


@pytest.mark.slow
async def test_connections_that_break_at_once_are_opened_ever_more_slowly(stack, model):
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0"))
    async with connected(model, [[server.address]], "unix") as experts:
        opened = []
        server.wires[0]._serve_link = lambda *_: opened.append(1)
        await asyncio.sleep(STEADY_S)
        experts._shards[0].replicas[0].disconnect("a test")
        await asyncio.sleep(1)
        assert 2 <= len(opened) <= 5


@TRANSPORTS
async def test_a_sum_of_another_shape_is_a_wire_error(stack, model, transport):
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0"))
    server.shard.forward = lambda layer, work: torch.zeros(1, 128, dtype=torch.float64)
    async with connected(model, [[server.address]], transport) as experts:
        with pytest.raises(WireError, match=r"sent \[1, 128\], expected \[2, 128\]"):
            await dispatch(experts, random_work(model, 2))


@TRANSPORTS
async def test_calls_in_flight_are_bounded(stack, model, transport):
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0"))
    async with connected(model, [[server.address]], transport) as experts:
        server.shard.hold()
        work = random_work(model, 1)
        flying = [dispatch(experts, work, step) for step in range(MAX_CALLS)]
        with pytest.raises(ExpertsUnavailable, match=f"owes {MAX_CALLS} answers"):
            await dispatch(experts, work)
        server.shard.release()
        expected = plain_sum(model, 2, work)
        for result in flying:
            assert_same(await result, expected)


@TRANSPORTS
@pytest.mark.slow
async def test_a_defect_of_a_replica_is_repeated_until_the_deadline(stack, model, transport, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # a raw stream's thread ends with the defect
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0"))
    server.shard.forward = lambda layer, work: 1 / 0
    async with connected(model, [[server.address]], transport, deadline_s=2) as experts:
        before = repeats("lost")
        with pytest.raises(ExpertsUnavailable, match=r"was lost|is connected"):
            await dispatch(experts, random_work(model, 2))
        assert 1 <= repeats("lost") - before < 40
        del server.shard.forward
        work = random_work(model, 2)
        assert_same(await dispatch(experts, work, 1), plain_sum(model, 2, work))


def threads_of(pid):
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def thread_state(pid, thread):
    return Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


def with_epoch(frame: bytes, epoch: int) -> bytes:
    return frame[:8] + epoch.to_bytes(8, "little") + frame[16:]


def repeats(reason):
    return REPEATED_CALLS.labels(reason)._value.get()
