"""A process is alive while something moves: bytes at first, the event loop later."""

import asyncio
import logging
import urllib.error
import urllib.request

import pytest

from services.runtime import liveness
from services.runtime.liveness import LOAD_STALL_S, LOADING, LOG_S, LOOP_STALL_S, Liveness
from services.runtime.metrics import metrics_port


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: `clock[0] += 1`."""
    now = [1000.0]
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now[0])
    return now


def test_a_start_is_alive_as_long_as_bytes_move(clock):
    one = Liveness()
    one.expect(100)
    for _ in range(50):
        clock[0] += LOAD_STALL_S - 1
        assert one.is_alive
        one.add_loaded(2)
    clock[0] += LOAD_STALL_S + 1
    assert not one.is_alive


def test_a_loop_that_does_not_turn_is_dead(clock):
    one = Liveness()
    one.beat()
    clock[0] += LOOP_STALL_S + 1
    assert not one.is_alive
    one.beat()
    assert one.is_alive


def test_progress_and_its_rate_are_in_the_log_now_and_then(clock, caplog):
    caplog.set_level(logging.INFO)
    one = Liveness()
    one.expect(1000)
    for _ in range(90):
        clock[0] += 0.1
        one.add_loaded(10)
    lines = [record for record in caplog.records if record.message == LOADING]
    assert len(lines) == 2
    assert (lines[-1].bytes_loaded, lines[-1].bytes_expected) == (pytest.approx(10 * 10 * LOG_S, abs=20), 1000)
    assert lines[-1].bytes_per_s == pytest.approx(100, rel=0.02)


async def test_the_metrics_port_says_whether_a_process_lives_while_its_thread_is_busy():
    alive = [True]

    def status(address, path="/live"):
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    with metrics_port("127.0.0.1:0", lambda: alive[0]) as address:
        assert await asyncio.to_thread(status, address) == 200
        assert await asyncio.to_thread(status, address, "/metrics") == 200
        alive[0] = False
        assert await asyncio.to_thread(status, address) == 503
