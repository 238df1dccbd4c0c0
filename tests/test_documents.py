"""Documents stay short, and the files, folders and modules that they name exist in a clone."""

import fnmatch
import io
import os
import re
import subprocess
import tokenize
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_WORDS, MAX_ROOT_WORDS = 700, 900
FOLDERS = (
    *(".", ".ci", "gateway", "helm", "kernels", "protos", "tests"),
    *(f"services/{path.name}" for path in sorted((ROOT / "services").iterdir()) if (path / "__init__.py").exists()),
)

PATH = re.compile(r"(?<![\w/.~$}-])[\w*./-]*[\w*]\.(?:md|py|proto|cpp|h|yaml|yml|toml|lock|tpl)\b(?!\.?[\w/])")
FOLDER = re.compile(r"`((?:[\w-]+/)+)`")
MODULE = re.compile(r"(?<![\w./@-])(?:protos|kernels|services|gateway|tests)(?:\.\w+)+")
# Chapters are cited by their heading; those of a paper by number ("arXiv 2309.00071, section 3.2").
FAR = re.compile(r"(?:\.\./)+shared\b|/work/|(?<!, )\b[Ss]ection \d|§")
# Names of files of other projects, of checkpoints and of what a user writes.
ELSEWHERE = {"sitecustomize.py", "llama.cpp"}
COMMENT = {
    **dict.fromkeys([".proto", ".cpp", ".h"], re.compile(r"//.*")),
    **dict.fromkeys([".yaml", ".tpl", ".toml", "Makefile", "Dockerfile", ".gitignore"], re.compile(r"(?:^|\s)#.*")),
}


def tracked() -> list[str]:
    """Return the paths of the repository's files, also of new ones that git does not ignore."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    paths = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in paths if (ROOT / path).exists()]


TRACKED = tracked()


def prose_of_python(text: str) -> str:
    """Return comments and docstrings: the strings that begin a line."""
    kept, starts_line = [], True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and starts_line):
            kept.append(token.string)
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            starts_line = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    return "\n".join(kept)


def prose(path: str) -> str:
    """Return the text of a file that is for its reader."""
    kind = PurePosixPath(path).suffix or PurePosixPath(path).name
    if kind not in {".md", ".py", *COMMENT}:
        return ""
    text = (ROOT / path).read_text()
    if kind == ".md":
        return text
    return prose_of_python(text) if kind == ".py" else "\n".join(COMMENT[kind].findall(text))


def file_exists(name: str, near: PurePosixPath) -> bool:
    """Tell whether a name is a path from one of the folders around, or the end of a path below this folder.

    A test may also name a file below the folder that it mirrors, and that folder the test.
    """
    if name in ELSEWHERE or name.endswith(("_pb2.py", "_pb2_grpc.py")):
        return True
    around = {os.path.normpath(folder / name) for folder in (near, *near.parents)}
    if "*" in name:
        return any(fnmatch.fnmatch(path, pattern) for pattern in around for path in TRACKED)
    below = ("" if near == PurePosixPath() else f"{near}/", f"{near}/".removeprefix("tests/"), f"tests/{near}/")
    return any(path in around or (path.startswith(below) and path.endswith(f"/{name}")) for path in TRACKED)


def module_exists(name: str) -> bool:
    """Tell whether a module, or something that a package defines, has this name."""
    folder = ROOT
    for part in name.split("."):
        if (folder / f"{part}.py").is_file():
            return True
        if (folder / part).is_dir():
            folder /= part
            continue
        initial = folder / "__init__.py"
        return part.endswith(("_pb2", "_pb2_grpc")) or (initial.exists() and part in initial.read_text())
    return True


def mistakes(path: str) -> list[str]:
    """Return what a file names and the repository does not have."""
    text, near = prose(path), PurePosixPath(path).parent
    text = re.sub(r"\w+://\S+", "", text)
    wrong = [name for name in PATH.findall(text) if not file_exists(name, near)]
    wrong += [
        name
        for name in FOLDER.findall(text)
        if not any((ROOT / folder / name).is_dir() for folder in (near, *near.parents))
        and not any(f"/{name}" in f"/{each}" for each in TRACKED if PurePosixPath(each).is_relative_to(near))
    ]
    if not path.startswith("helm/"):  # there gateway's `replicas` is a value of the chart
        wrong += [name for name in MODULE.findall(text) if not module_exists(name)]
    return [f"{path}: {name}" for name in sorted({*wrong, *FAR.findall(text)})]


def belongs(path: str, folder: str) -> bool:
    return "/" not in path if folder == "." else path.startswith(f"{folder}/")


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_named_exists(folder):
    assert [each for path in TRACKED if belongs(path, folder) for each in mistakes(path)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_readmes_are_short(folder):
    wrong = []
    for path in TRACKED:
        if belongs(path, folder) and PurePosixPath(path).name == "README.md":
            words = len((ROOT / path).read_text().split())
            most = MAX_ROOT_WORDS if folder == "." else MAX_WORDS
            wrong += [f"{path}: {words} words of at most {most}"] * (words > most)
    assert wrong == []


def test_every_file_is_looked_at():
    """Each file belongs to one of the folders above, or is an empty `services/__init__.py`."""
    assert [path for path in TRACKED if not any(belongs(path, folder) for folder in FOLDERS)] == [
        "services/__init__.py"
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("see architecture.md section 2", ["architecture.md", "section 2"], id="a document outside"),
        pytest.param("`services/attention/shard_wire.py`", ["services/attention/shard_wire.py"], id="a file that went"),
        pytest.param("in ../shared/data and `services/no_such/`", ["../shared", "services/no_such/"], id="folders"),
        pytest.param("`services.attention.dispatch`", ["services.attention.dispatch"], id="a module that went"),
        pytest.param("`README.md`, `gateway/`, kernels.silu_mul, protos/*.proto", [], id="what is there"),
    ],
)
def test_what_is_not_there_is_found(text, found, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(text)
    monkeypatch.setattr(f"{__name__}.prose", lambda path: (tmp_path / path).read_text())
    assert mistakes("README.md") == [f"README.md: {name}" for name in sorted(found)]
