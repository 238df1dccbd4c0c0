"""Log lines are JSON, also for uncaught exceptions."""

import json
import subprocess
import sys

from tests.services.runtime.conftest import ROOT

SCRIPT = """
import logging, sys, threading, warnings
from services.runtime.logs import setup_logging

setup_logging("info", "expert", "expert-0-1")
log = logging.getLogger("expert")
log.debug("below the level")
log.info("admitted %d\\nof %d", 1, 2, extra={"request_id": "r-1", "seconds": 0.25, "path": sys.__class__})
try:
    raise ValueError("inner")
except ValueError:
    log.exception("failed")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise KeyError("outer")
"""


def test_every_line_is_an_object():
    ended = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert ended.returncode == 1
    assert [line["level"] for line in lines] == ["info", "error", "warning", "critical", "critical"]
    assert {(line["service"], line["instance"]) for line in lines} == {("expert", "expert-0-1")}
    first, failed, _, in_thread, last = lines
    assert first["msg"] == "admitted 1\nof 2"
    assert (first["request_id"], first["seconds"]) == ("r-1", 0.25)
    assert first["ts"].endswith("Z") and len(first["ts"]) == len("2026-01-01T00:00:00.000Z")
    assert "ValueError: inner" in failed["stack"]
    assert "ZeroDivisionError" in in_thread["stack"]
    assert "KeyError: 'outer'" in last["stack"]
