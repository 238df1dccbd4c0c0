"""`moonshard stop` and `moonshard logs`."""

import dataclasses
import subprocess
import sys
from itertools import islice

import psutil
import pytest
from typer.testing import CliRunner

from services.local import control
from services.local.__main__ import app
from services.local.cluster_log import ClusterLog
from services.local.control import read_log, stop_cluster
from services.local.run_folder import ClusterState, ProcessState, StateFile
from services.runtime.metrics import metrics_port

OBEYS = "import time; print('up', flush=True); time.sleep(600)"
REFUSES = "import signal; signal.signal(signal.SIGTERM, lambda *_: None);" + OBEYS


def supervisor(code):
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    return process


def state(pid=0, log="", names=("gateway",)):
    processes = [ProcessState(name, 1, "ready", "") for name in names]
    return ClusterState("http://127.0.0.1:8000", pid, "/model", log, "/run", 0.0, processes)


@pytest.mark.parametrize(("code", "ends"), [(OBEYS, True), (REFUSES, False)], ids=["obeys", "refuses"])
@pytest.mark.slow
def test_stop(code, ends):
    with supervisor(code) as process:
        assert stop_cluster(state(process.pid), 1.0) is ends
        assert not psutil.pid_exists(process.pid)


def test_stop_of_one_that_is_gone():
    with supervisor(OBEYS) as process:
        process.kill()
        process.wait(10)
    assert stop_cluster(state(process.pid), 1.0)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "cluster.log"
    with ClusterLog(path) as log:
        log.write("gateway", b'{"ts": "1", "level": "info", "msg": "listening", "port": 8000}')
        log.write("redis-0", b"Ready to accept connections")
        yield log


def test_lines_of_all_and_of_one(log):
    assert [(one.process, one.level, one.message) for one in read_log(log.path)] == [
        ("gateway", "INFO", "listening"),
        ("redis-0", "OUTPUT", "Ready to accept connections"),
    ]
    assert [str(one) for one in read_log(log.path, "gateway")] == ["listening  port=8000"]


def test_a_line_that_is_none_of_ours_is_left_out(log):
    with log.path.open("a") as file:
        file.write("half a li\n[]\n{}\n")
    assert len(list(read_log(log.path))) == 2


def test_following_goes_on_in_a_new_file(log, monkeypatch):
    monkeypatch.setattr(control, "POLL_S", 0.01)
    lines = read_log(log.path, "gateway", follow=True)
    assert [one.message for one in islice(lines, 1)] == ["listening"]
    log.path.replace(log.path.with_suffix(".1"))
    with ClusterLog(log.path) as new:
        new.write("gateway", b'{"msg": "again"}')
        assert next(lines).message == "again"
    lines.close()


@pytest.fixture
def running(tmp_path, monkeypatch, log):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with StateFile(tmp_path / "moonshard") as file:
        file.write(state(log=str(log.path), names=("gateway", "redis-0")))
        yield


def test_the_logs_command(running):
    shown = CliRunner().invoke(app, ["logs", "redis-0"])
    assert (shown.exit_code, "Ready to accept connections" in shown.stdout) == (0, True)
    assert "listening" not in shown.stdout
    wrong = CliRunner().invoke(app, ["logs", "redis"])
    assert (wrong.exit_code, "there is no process 'redis', only gateway, redis-0" in wrong.stderr) == (2, True)


def test_the_metrics_command(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with StateFile(tmp_path / "moonshard") as file, metrics_port(f"unix:{tmp_path}/gateway.prom"):
        file.write(dataclasses.replace(state(names=("gateway", "vision", "redis-0")), run_folder=str(tmp_path)))
        one, all_of_them = (CliRunner().invoke(app, ["metrics", *name]) for name in (["gateway"], []))
        wrong = CliRunner().invoke(app, ["metrics", "redis-0"])
    assert (one.exit_code, "python_info{" in one.stdout) == (0, True)
    assert "# gateway" in all_of_them.stdout
    assert "# vision\n# not there: it does not serve metrics yet" in all_of_them.stdout
    assert (wrong.exit_code, "only gateway, vision" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("command", ["stop", "logs", "metrics", "status"])
def test_without_a_cluster(command, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = CliRunner().invoke(app, [command])
    assert (result.exit_code, "no cluster is running" in result.stderr) == (2, True)


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout.startswith("moonshard 0.")) == (0, True)
