"""The Dockerfile, as far as it can be tested without Docker; and `slim`'s processes without the packages it omits."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from services.local.environment import SHARED
from tests.small_tokenizer import write_small_tokenizer

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"pillow": "PIL"}  # where a distribution's module has another name
SLIM = ("gateway", "services.tokenizer", "services.autoscaler")

# Run by every process with its folder on the path: what only the torch image has cannot be imported.
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"{{name}} is not in the slim image", name=name)

sys.meta_path.insert(0, Blocked())
"""


def instructions():
    """Return (instruction, arguments) of the Dockerfile, with continued lines joined and without comments."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def stages():
    """Return stage -> (its base, its instructions)."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for instruction, arguments in instructions():
        if instruction == "FROM":
            source, _, name = arguments.split()
            found[name] = (source, [])
        elif found:
            found[name][1].append((instruction, arguments))
    return found


def lineage(name):
    """Return all instructions of a stage, after those of the stages that it is built from."""
    source, own = stages()[name]
    return [*(lineage(source) if source in stages() else ()), *own]


def names_of(requirements):
    return {re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower() for requirement in requirements}


def without_torch(folder, **variables):
    """Return the environment of a process of the slim image."""
    names = {MODULES.get(name, name) for name in names_of(PROJECT["optional-dependencies"]["torch"])}
    (folder / "sitecustomize.py").write_text(BLOCK.format(names=sorted({*names, "triton"})))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOONSHARD_")}
    return {**kept, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables}


def test_the_targets_are_there_and_stand_on_each_other():
    assert {"slim", "torch", "nano"} <= set(stages())
    assert stages()["nano"][0] == "torch"
    assert stages()["torch-packages"][0] == "slim-packages"


def test_the_base_is_pinned():
    bases = {source for source, _ in stages().values()} - set(stages())
    assert bases == {"python:${PYTHON}"}
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("target", ["slim", "torch", "nano"])
def test_an_image_runs_without_root_and_ends_on_signals(target):
    steps = lineage(target)
    assert [arguments for instruction, arguments in steps if instruction == "USER"][-1] == "10001:10001"
    # In brackets: a shell in between would keep SIGTERM for itself.
    assert [json.loads(a) for i, a in steps if i == "ENTRYPOINT"][-1] == ["python", "-P", "-m"]
    assert "HEALTHCHECK" not in {instruction for instruction, _ in steps}


def test_every_image_has_the_environment_of_the_processes():
    given = dict(re.findall(r"(\w+)=(\S+)", " ".join(a for i, a in lineage("slim") if i == "ENV")))
    assert {name: given.get(name) for name in SHARED} == SHARED


def test_layers_keep_nothing_that_is_not_needed():
    runs = [a for name in stages() for i, a in stages()[name][1] if i == "RUN"]
    for run in runs:
        assert ("apt-get install" in run) == ("rm -rf /var/lib/apt/lists/*" in run)
        assert ("apt-get install" in run) == ("--no-install-recommends" in run)
    assert "PIP_NO_CACHE_DIR=1" in DOCKERFILE
    assert not [a for i, a in instructions() if i == "ADD"]
    for target in ("slim", "torch", "nano"):
        # The compiler and the sources stay in the stage of the wheel.
        assert "g++" not in " ".join(a for _, a in lineage(target))
        assert [a for i, a in lineage(target) if i == "COPY"] == (
            ["services/nano /models/nano"] if target == "nano" else []
        )


def test_everything_the_wheel_is_made_of_is_copied():
    copied = {word for i, a in stages()["wheel"][1] if i == "COPY" for word in a.split()[:-1]}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*packages["packages"], "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} == copied
    ignored = (ROOT / ".dockerignore").read_text()
    assert all(f"!{name}\n" in ignored for name in copied)


def test_torch_is_in_the_extra_alone():
    assert not names_of(PROJECT["dependencies"]) & names_of(PROJECT["optional-dependencies"]["torch"])
    assert "moonshard[torch]" in PROJECT["optional-dependencies"]["local"]


@pytest.mark.slow
@pytest.mark.parametrize("module", SLIM)
def test_a_process_of_the_slim_image_starts_without_torch(tmp_path, module):
    """It ends at its settings, which are missing; by then everything is imported."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", module],
        env=without_torch(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "MOONSHARD_" in done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def process(module, environment):
    """Start a process and yield the address from its log."""
    command = [sys.executable, "-P", "-m", module]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
        try:
            address = next(said["address"] for line in child.stderr if "address" in (said := json.loads(line)))
            yield address
            child.send_signal(signal.SIGTERM)
            child.stderr.read()
            assert child.wait(60) == 0
        finally:
            child.kill()


@pytest.mark.slow
def test_gateway_and_tokenizer_work_without_torch(tmp_path):
    checkpoint, blocked = tmp_path / "checkpoint", tmp_path / "blocked"
    checkpoint.mkdir()
    blocked.mkdir()
    write_small_tokenizer(checkpoint, 256)
    environment = without_torch(blocked, MOONSHARD_LISTEN="127.0.0.1:0", MOONSHARD_MODEL=str(checkpoint))
    with process("services.tokenizer", environment) as tokenizer:
        peers = {"MOONSHARD_TOKENIZERS": tokenizer, "MOONSHARD_DECODES": "127.0.0.1:1"}
        with process("gateway", environment | peers) as gateway:
            answer = httpx.post(f"http://{gateway}/tokenize", json={"prompt": "Hi"}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["count"] == 2
