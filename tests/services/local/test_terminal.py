"""The output of `moonshard up`; the cluster continues when its terminal is gone."""

import errno
import io

import pytest
from rich.console import Console

from services.local.child import ProcessFailed
from services.local.cluster_log import LogRecord
from services.local.terminal import Terminal, printable
from services.runtime.liveness import LOADING


class ClosedTerminal(io.StringIO):
    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


def shown(use, *, verbose=False) -> str:
    console = Console(file=io.StringIO(), width=100)
    use(Terminal(console, verbose=verbose))
    return console.file.getvalue()


@pytest.mark.parametrize(
    "level, verbose, is_shown",
    [
        pytest.param("DEBUG", True, False, id="debug-never"),
        pytest.param("INFO", False, False, id="info-only-if-asked"),
        pytest.param("INFO", True, True, id="info-if-asked"),
        pytest.param("WARNING", False, True, id="warning-always"),
        pytest.param("CRITICAL", False, True, id="critical-always"),
        pytest.param("OUTPUT", True, False, id="unknown-output-never"),
    ],
)
def test_log_lines(level, verbose, is_shown):
    record = LogRecord("expert-0-0", "now", level, "message [red]\x1b[31m", {"step": 7})
    text = shown(lambda terminal: terminal.logged(record), verbose=verbose)
    assert ("message [red]\ufffd[31m  step=7" in text) == is_shown


def test_steps_of_a_process():
    def use(terminal):
        terminal.begin(["part"])
        terminal.started("part", 7)
        terminal.ready("part", 1.25)
        terminal.crashed("part", "by SIGKILL", 0.0)
        terminal.crashed("part", "with exit code 1", 0.4)
        terminal.stopped("part", "with exit code 0")
        terminal.stopped("part", "killed")
        terminal.end()

    assert [line.split(maxsplit=2) for line in shown(use).splitlines()] == [
        ["ready", "part", "1.2 s"],
        ["ended", "part", "by SIGKILL; starting it again now"],
        ["ended", "part", "with exit code 1; starting it again in 0.4 s"],
        ["killed", "part", "did not stop by itself"],
    ]


def test_failure_shows_the_last_lines_and_the_log():
    records = [LogRecord("part", "now", "OUTPUT", f"line {number}") for number in range(20)]
    text = shown(lambda terminal: terminal.failed(ProcessFailed("part", "refused to start", records), "/the/log"))
    lines = text.splitlines()
    assert lines[0] == "Failed: part refused to start"
    assert [line.rpartition("line ")[2] for line in lines[1:-1]] == [str(number) for number in range(10, 20)]
    assert lines[-1] == "The whole log: /the/log"


def test_closed_terminal_raises_nothing():
    terminal = Terminal(Console(file=ClosedTerminal(), force_terminal=True), verbose=True)
    terminal.begin(["part"])
    terminal.ready("part", 1.0)
    terminal.logged(LogRecord("part", "now", "ERROR", "message"))
    terminal.end()


@pytest.mark.parametrize(
    "text, safe",
    [
        pytest.param("plain\ttext\n", "plain\ttext\n", id="plain"),
        pytest.param("\u00e9\u4e2d\U0001f600", "\u00e9\u4e2d\U0001f600", id="not-ascii"),
        pytest.param("\u3000a\u00a0b\u200d\u200c", "\u3000a\u00a0b\u200d\u200c", id="wide-spaces-and-joiners"),
        pytest.param("one\r\ntwo\rthree", "one\ntwothree", id="carriage-return-overwrites"),
        pytest.param("\x1b[2J\x07\x08\x7f\x9b", "\ufffd[2J\ufffd\ufffd\ufffd\ufffd", id="control"),
        pytest.param("\u202eabc\ud800", "\ufffdabc\ufffd", id="direction-and-lone-surrogate"),
    ],
)
def test_printable(text, safe):
    assert printable(text) == safe


def test_who_is_waited_for_and_how_far_it_has_loaded():
    terminal = Terminal(Console(file=io.StringIO(), width=100, force_terminal=True), verbose=False)
    terminal.begin(["expert-0-0", "decode-0"])
    fields = {"bytes_loaded": 45, "bytes_expected": 100, "bytes_per_s": 10}
    terminal.logged(LogRecord("expert-0-0", "now", "INFO", LOADING, fields))
    status = terminal._status
    assert status is not None
    assert status.status == "waiting for decode-0, expert-0-0 (45 %)"
    terminal.ready("expert-0-0", 3.0)
    assert status.status == "waiting for decode-0"
    terminal.end()
