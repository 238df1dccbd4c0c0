"""`moonshard up` from start to end: its output, its service, its clean-up."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from services.local.random_checkpoint.write import write_random_checkpoint
from services.local.run_folder import running_clusters, sweep
from tests.services.local.typist import Typist

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
START_S = 120


class Up:
    """A running `moonshard up` with its own cache folder and its own folder for temporary files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.cache = folder / "cache"
        # A short path, because the length of socket paths is limited.
        self.temporary = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))
        self.environ = {**os.environ, "XDG_CACHE_HOME": str(self.cache), "TMPDIR": str(self.temporary)}
        self.output = folder / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.local", "up", *arguments],
                cwd=ROOT,
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def printed(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + START_S
        while text not in self.printed():
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def moonshard(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.local", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )


@contextlib.contextmanager
def up(folder: Path, *arguments: str) -> Iterator[Up]:
    command = Up(folder, *arguments)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.stop(signal.SIGKILL)
        # It must be empty after every test.
        command.temporary.rmdir()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_random_checkpoint(path)
    return path


def test_first_start_serves_and_leaves_nothing_behind(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        up(tmp_path, "--port", str(taken.getsockname()[1])) as command,
    ):
        command.wait_for("Ctrl-C stops everything.")
        printed = command.printed()
        url = re.search(r"^Ready after .* s: (http://127\.0\.0\.1:\d+)$", printed, re.MULTILINE)[1]
        assert f"Port {taken.getsockname()[1]} is taken, using {url.rpartition(':')[2]}." in printed
        assert "This is Nano, a demonstration" in printed
        assert_curl_works(printed)
        listed = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
        assert [(model["id"], model["display_name"]) for model in listed] == [("nano", "Nano")]
        assert listed[0]["supports_image_in"] and listed[0]["supports_video_in"]

        asked = command.moonshard("chat", "--no-thinking", "--max-tokens", "8", "Hello")
        assert (asked.returncode, asked.stderr) == (0, "")
        assert asked.stdout.strip() != ""

        table = command.moonshard("status").stdout
        assert url in table
        names = ("redis-0", "tokenizer-0", "vision-0", "expert-0-0", "expert-1-0", "prefill-0", "decode-0", "gateway")
        for name in names:
            assert re.search(rf"{name} .* \d+ .* ready .* \d+", table), table
        assert re.search(r"decode-0 .* 2 shared", table), table

        children = command.children()
        assert len(children) == 8
        [state] = running_clusters(command.cache / "moonshard")
        kill(state, "expert-1-0")
        command.wait_for("expert-1-0           by SIGKILL; starting it again now")
        wait_until(lambda: command.printed().count("ready  expert-1-0") == 2)
        assert_curl_works(printed)

        assert command.stop() == 0
        assert command.printed().endswith("Stopping; once more to stop at once.\nStopped.\n")
        assert [child for child in children if child.is_running()] == []
        assert running_clusters(command.cache / "moonshard") == []
        left = {path.name for path in (command.cache / "moonshard").iterdir()}
        assert left == {Path(state.log).name}
        assert {json.loads(line)["process"] for line in Path(state.log).read_text().splitlines()} == {
            process.name for process in state.processes
        }


def test_tiny_is_written_once_and_is_random(tmp_path):
    arguments = ["--model", "tiny", "--port", "20000", "--experts", "0", "--prefill", "0", "--visions", "0"]
    for number in range(2):
        with up(tmp_path, *arguments) as command:
            command.wait_for("Ctrl-C stops everything.")
            printed = command.printed()
            assert ("Writing a tiny random checkpoint" in printed) == (number == 0)
            assert "RANDOM weights: its answers are random text" in printed
            assert_curl_works(printed)
            assert command.stop() == 0
    assert len([*(tmp_path / "cache" / "moonshard" / "checkpoints").iterdir()]) == 1


def assert_curl_works(printed: str) -> None:
    """Send the request of the printed curl command."""
    url, body = re.search(r"curl (\S+) -H 'Content-Type: application/json' \\\n +-d '(.*)'\n", printed).groups()
    answer = httpx.post(url, json={**json.loads(body), "max_tokens": 4}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0


def kill(state, name: str) -> None:
    [pid] = [process.pid for process in state.processes if process.name == name]
    os.kill(pid, signal.SIGKILL)


def test_nothing_survives_a_supervisor_that_is_killed(tmp_path, model):
    with up(tmp_path, "--model", str(model), "--port", "20000", "--experts", "0", "--prefill", "0") as command:
        command.wait_for("Ctrl-C stops everything.")
        assert "RANDOM" not in command.printed() and "Nano" not in command.printed()
        children = command.children()
        assert len(children) == 5
        command.stop(signal.SIGKILL)
        wait_until(lambda: not any(child.is_running() for child in children))
        cache = command.cache / "moonshard"
        assert running_clusters(cache) == []
        # The next start removes it.
        assert [path.parent for path in sweep(cache)] == [command.temporary]


def test_stop_while_starting(tmp_path, model):
    with up(tmp_path, "--model", str(model), "--port", "20000") as command:
        command.wait_for("ready  redis-0")
        children = command.children()
        assert command.stop(signal.SIGTERM) == 0
        assert [child for child in children if child.is_running()] == []
        assert "Ready after" not in command.printed()


@pytest.mark.parametrize("when", ["waiting for", "Ctrl-C stops everything."], ids=["while-starting", "when-ready"])
def test_closed_window(tmp_path, model, when):
    temporary = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))
    environ = {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(temporary)}
    arguments = ["up", "--model", str(model), "--port", "20000", "--experts", "0", "--prefill", "0"]
    typist = Typist(*arguments, environ=environ)
    typist.wait_for(when, START_S)
    children = psutil.Process(typist.pid).children(recursive=True)
    typist.close_window()
    assert typist.exit_code() == 0
    assert [child for child in children if child.is_running()] == []
    # A regular stop removes this file; the death of the supervisor would not.
    temporary.rmdir()
    assert running_clusters(tmp_path / "moonshard") == []


def test_bad_checkpoint_stops_everything_with_its_sentence(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    with up(tmp_path, "--model", str(model), "--port", "20000") as command:
        assert command.process.wait(START_S) == 1
        printed = command.printed()
    assert re.search(r"^Failed: \S+ refused to start$", printed, re.MULTILINE), printed
    assert "llama" in printed or str(model) in printed
    log = re.search(r"^The whole log: (.*)$", printed, re.MULTILINE)[1]
    assert Path(log).is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param(
            ["--model", "/no/such/folder"], "is not a checkpoint folder: it has no config.json", id="no-model"
        ),
        pytest.param(["--host", "203.0.113.1", "--model", "."], "cannot listen on 203.0.113.1", id="not-our-address"),
        pytest.param(["--decode", "0"], "Invalid value for '--decode'", id="out-of-range"),
        pytest.param(["--dtype", "float16"], "Invalid value for '--dtype'", id="unknown-dtype"),
    ],
)
def test_bad_options(tmp_path, arguments, message):
    with up(tmp_path, *arguments) as command:
        assert command.process.wait(60) == 2
        assert message in command.printed()


def wait_until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
