"""The commands, options and variables that the documents name exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main
from hatchling.builders.wheel import WheelBuilder

from services.local import settings_table
from services.local.__main__ import app
from services.local.checkpoints import NANO
from tests.test_documents import TRACKED

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# Read by the tests, not by a process.
OTHER_VARIABLES = {"MOONSHARD_RELEASED", "MOONSHARD_TEST_IMAGE"}


def make(*arguments):
    """Run make without the flags of the make that may run these tests."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_help_names_every_target():
    shown = make("help")
    assert shown.returncode == 0
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert [line.split()[0] for line in shown.stdout.splitlines()] == phony


@needs_make
def test_commands_of_the_readme_exist():
    targets = sorted(set(re.findall(r"\bmake ([a-z]+)", "\n".join(code_of(README)))))
    assert {"serve", "test", "chat"} <= set(targets)
    for target in targets:
        planned = make("--dry-run", target)
        assert planned.returncode == 0, planned.stderr
    commands = typer.main.get_command(app).commands
    for name in re.findall(r"moonshard ([a-z]+)", "\n".join(code_of(README))):
        assert name in commands


def test_options_of_the_readmes_exist():
    up = typer.main.get_command(app).commands["up"]
    options = {name for option in up.params for name in option.opts}
    text = README + (ROOT / "services" / "local" / "README.md").read_text()
    named = set(re.findall(r"--[a-z][a-z-]+", "\n".join(re.findall(r"(?:moonshard up|make serve)[^`\n]*", text))))
    assert "--experts" in named
    assert named - {"--help"} <= options


@pytest.mark.parametrize("path", [path for path in TRACKED if path.endswith(".md")])
def test_variables_of_the_documents_exist(path):
    """A name that ends with _ stands for all variables that begin so."""
    known = {row.variable for row in settings_table.settings()} | OTHER_VARIABLES
    named = set(re.findall(r"\bMOONSHARD_[A-Z_]+", (ROOT / path).read_text()))
    assert [name for name in sorted(named - known) if not is_beginning(name, known)] == []


def is_beginning(name, known):
    return name.endswith("_") and any(each.startswith(name) for each in known)


def code_of(text):
    """Return fenced blocks and inline code."""
    return re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)


def test_the_wheel_has_nano():
    files = {file.relative_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    nano = [path for path in NANO.iterdir() if path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in nano} <= files
    assert not [path for path in files if path.startswith("services/nano/train")]
    sizes = [path.stat().st_size for path in nano]
    assert max(sizes) <= 16 * 2**20 and sum(sizes) <= 24 * 2**20
