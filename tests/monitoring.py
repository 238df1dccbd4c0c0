"""The queries of dashboards and rules, and Prometheus' own checker."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "moonshard"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
RULES_FILE = CHART / "rules" / "moonshard.yaml"
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments, stdin=None):
    """Run Prometheus' own checker: from the PATH, or as `make test` unpacks it."""
    beside = Path(sys.executable).with_name("promtool")
    program = shutil.which("promtool") or (str(beside) if beside.exists() else None)
    if program is None:
        message = "there is no promtool (Debian's package prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    command = [program, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def panels():
    return [
        (f"{name}: {panel['title']}", panel)
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    ]


def queries():
    """Return (place, PromQL) of all panels and rules."""
    asked = [(where, target["expr"]) for where, panel in panels() for target in panel["targets"]]
    return asked + [(rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES]


def metrics_in(expr):
    return set(re.findall(r"(?<![\w:])moonshard_\w+", expr))
