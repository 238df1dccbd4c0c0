"""What README and Makefile promise exists."""

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main
from hatchling.builders.wheel import WheelBuilder
from pydantic_settings import BaseSettings

from services.local.__main__ import app
from services.local.checkpoints import NANO

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SETTINGS = {
    "gateway.settings": "GatewaySettings",
    "services.attention.settings": "AttentionSettings",
    "services.expert.settings": "ExpertSettings",
    "services.tokenizer.settings": "TokenizerSettings",
}


def make(*arguments):
    """A make of its own, also where `make test` runs these tests: its flags and level are not passed on."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def settings_fields():
    classes: list[type[BaseSettings]] = [getattr(importlib.import_module(m), name) for m, name in SETTINGS.items()]
    return {f"MOONSHARD_{name.upper()}": field for kind in classes for name, field in kind.model_fields.items()}


def rows(heading):
    """The cells of the table whose header begins with this word."""
    table = re.search(rf"^\| {heading} \|.*\n\|[- |]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


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


def test_options_of_the_readme_exist():
    up = typer.main.get_command(app).commands["up"]
    options = {name: option for option in up.params for name in option.opts}
    for named, default, _ in rows("option"):
        for name, said in zip(named.replace("`", "").split(", "), default.split(", "), strict=False):
            assert name in options
            if said.isdigit() and name != "--num-blocks":
                assert str(options[name].default) == said, name
    assert set(re.findall(r"(?<!-)--[a-z][a-z-]+", README)) - {"--help"} <= set(options)


def test_variables_of_the_readme_exist():
    fields = settings_fields()
    listed = rows("variable")
    assert listed
    for name, default, _ in listed:
        assert str(fields[name.strip("`")].default) == default, name
    assert set(re.findall(r"MOONSHARD_[A-Z_]+", README)) <= set(fields)
    defaults = {row[0]: row[1] for row in rows("option")}
    assert str(fields["MOONSHARD_NUM_BLOCKS"].default) == defaults["`--num-blocks`"]


def test_folders_of_the_readme_exist():
    for name in re.findall(r"`([a-z_/]+/)`", README):
        assert (ROOT / name).is_dir(), name


def code_of(text):
    """Fenced blocks and inline code."""
    return re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)


def test_the_wheel_has_nano():
    files = {file.relative_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    nano = [path for path in NANO.iterdir() if path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in nano} <= files
    assert not [path for path in files if path.startswith("services/nano/train")]
    sizes = [path.stat().st_size for path in nano]
    assert max(sizes) <= 16 * 2**20 and sum(sizes) <= 24 * 2**20
