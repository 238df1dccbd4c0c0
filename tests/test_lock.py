"""The lock file pins the requirements of pyproject.toml and all of their requirements."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def pins():
    """Return distribution -> pinned version, of the lines that apply to this machine."""
    lines = (line.partition("#")[0].strip() for line in LOCK.splitlines())
    pinned = [Requirement(line) for line in lines if line]
    assert all(re.fullmatch(r"==[^*+,]+", str(pin.specifier)) for pin in pinned), "a pin is one version, of any build"
    return {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("=="))
        for pin in pinned
        if pin.marker is None or pin.marker.evaluate()
    }


def direct():
    """Return the requirements of the project and of all its extras."""
    listed = [
        *PROJECT["dependencies"],
        *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
    ]
    return [Requirement(each) for each in listed if not each.startswith("moonshard[")]


def brought_along():
    """Return (who asks, requirement) for every installed distribution that the project needs, directly or not."""
    found, waiting, seen = [], [("moonshard", each) for each in direct()], set()
    while waiting:
        asker, requirement = waiting.pop()
        if requirement.marker is not None and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
        ):
            continue
        found.append((asker, requirement))
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        for each in importlib.metadata.requires(requirement.name) or ():
            wanted = Requirement(each)
            extras = ("", *requirement.extras)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.marker = None
                waiting.append((requirement.name, wanted))
    return found


def test_the_lock_satisfies_every_requirement():
    pinned = pins()
    wrong = [
        f"{asker} asks for {requirement}, the lock has {pinned.get(canonicalize_name(requirement.name))}"
        for asker, requirement in brought_along()
        if not requirement.specifier.contains(
            pinned.get(canonicalize_name(requirement.name), Version("0")), prereleases=True
        )
        or canonicalize_name(requirement.name) not in pinned
    ]
    assert wrong == [], "run `make lock`"


def test_the_lock_names_no_place():
    """The user of the lock chooses where packages come from: a mirror, or the index of PyTorch's CPU builds."""
    assert "://" not in LOCK
    assert "--" not in LOCK


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_everything_is_installed_by_the_lock(file):
    text = (ROOT / file).read_text().replace("\\\n", " ")
    installs = re.findall(r"-m pip install (?:(?!&&).)*", text)
    free = [
        line for line in installs if "--constraint" not in line and not re.search(r"--no-deps|uv$|quiet pip;", line)
    ]
    assert installs
    assert free == []
