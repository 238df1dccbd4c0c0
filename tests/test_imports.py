"""The import rules of ARCHITECTURE.md, and the largest size of files and folders."""

import ast
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("protos", "kernels", "services", "gateway", "tests")
SERVICES = ("tokenizer", "vision", "attention", "expert", "autoscaler")
NO_TORCH = (
    "protos",
    "services/runtime",
    "services/checkpoint",
    "services/tokenizer",
    "services/autoscaler",
    "gateway",
)
TRAINING = "services/nano/train"
MAX_ENTRIES = 30  # of a folder
MAX_LINES = 300  # of a file

ALLOWED = {
    "protos": [],
    "kernels": [],
    "services/runtime": ["protos"],
    "services/checkpoint": ["protos", "services.runtime"],
    "services/wire": ["protos", "kernels", "services.runtime", "services.checkpoint"],
    "services/model": ["protos", "kernels", "services.runtime", "services.checkpoint"],
    "services/nano": [],
    "services/local": ["services.runtime", "services.checkpoint", "services.model"],
    # Training is an offline tool, no process of the cluster: it must render and preprocess exactly as serving does.
    TRAINING: [
        *("protos", "kernels", "services.checkpoint", "services.model", "services.tokenizer", "services.vision"),
        *("services.local", "services.nano"),
    ],
    "gateway": ["protos", "services.runtime", "services.checkpoint"],
    **{
        f"services/{name}": [
            *("protos", "kernels", "services.runtime", "services.checkpoint", "services.wire", "services.model"),
        ]
        for name in SERVICES
    },
}

# Inside a folder: each part may import those it names, and the files beside the parts that are listed with it.
BESIDE = {
    "services/attention": ("settings", "metrics"),
    "gateway": ("settings", "metrics", "version"),
}
INSIDE = {
    "services/attention": {
        "experts": [],
        "sampling": [],
        "constraint": ["sampling"],
        "layers": ["experts", "sampling", "constraint"],
        "engine": ["layers", "experts", "sampling", "constraint"],
    },
    "gateway": {
        "http": [],
        "cluster": ["http"],
        "request": ["cluster", "http"],
        "dialects": ["request", "cluster", "http"],
    },
    "kernels": {
        "reference": [],
        "portable": ["reference"],
        "native": ["portable", "reference"],
        "gpu": ["portable", "reference"],
    },
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(folder: str) -> list[Path]:
    return [p for p in (ROOT / folder).rglob("*.py") if not p.stem.endswith(("_pb2", "_pb2_grpc"))]


def serving(folder: str) -> list[Path]:
    """Return the folder's sources without those of the training, which has a row of its own."""
    training = set(sources(TRAINING))
    return [p for p in sources(folder) if folder == TRAINING or p not in training]


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_one_way(folder):
    allowed = [folder.replace("/", "."), *ALLOWED[folder]]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in serving(folder)
        for name in imports(path)
        if name.split(".")[0] in OURS and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize(("folder", "part"), [(folder, part) for folder in INSIDE for part in INSIDE[folder]])
def test_imports_inside_a_folder_point_one_way(folder, part):
    package = folder.replace("/", ".")
    allowed = {part, *INSIDE[folder][part], *BESIDE.get(folder, ())}
    if folder == "kernels":
        allowed |= {"interface", "choice", "expanded", "fused", "grid", "roofline"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(f"{folder}/{part}")
        for name in imports(path)
        if name.startswith(f"{package}.") and name.removeprefix(f"{package}.").split(".")[0] not in allowed
    ]
    assert wrong == []


def test_every_part_of_a_divided_folder_has_its_place():
    for folder, parts in INSIDE.items():
        found = {path.name for path in (ROOT / folder).iterdir() if path.is_dir() and not path.name.startswith("__")}
        assert found == set(parts), folder


def test_nothing_that_serves_imports_the_training():
    training = TRAINING.replace("/", ".")
    wrong = [
        path
        for folder in ("services", "gateway")
        for path in serving(folder)
        for name in imports(path)
        if name.startswith(training)
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", NO_TORCH)
def test_light_processes_do_not_load_torch(folder):
    # services.model may load torch, so a light process must not use it either.
    heavy = ("torch", "triton", "kernels", "services.model")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imports(path)
        if any(name == h or name.startswith(f"{h}.") for h in heavy)
    ]
    assert wrong == []


# Imports the modules one after another, and names the first one that loads torch.
WATCH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = {"torch", "triton"} & set(sys.modules)
    if loaded:
        sys.exit(f"{name} loads {loaded}")
"""


def test_light_processes_do_not_load_torch_through_others():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in NO_TORCH
        for path in sources(folder)
        if path != ROOT / "protos" / "build.py"
    ]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_kernels_is_ours():
    spec = importlib.util.find_spec("kernels")
    assert spec is not None
    assert spec.origin == str(ROOT / "kernels" / "__init__.py")


def test_top_level_is_as_agreed():
    agreed = {
        *("pyproject.toml", "README.md", "protos", "services", "kernels", "helm", "tests", "gateway"),
        *(
            "LICENSE",
            "CHANGELOG.md",
            "ARCHITECTURE.md",
            "CONTRIBUTING.md",
            "Makefile",
            "Dockerfile",
            "requirements.lock",
            "dist",
        ),
    }
    assert {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} <= agreed


def test_folders_fit_on_a_screen():
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    paths = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    inside = {
        (part.parent, part) for path in map(Path, paths) if (ROOT / path).exists() for part in (path, *path.parents)
    }
    sizes = Counter(folder for folder, _ in inside)
    assert {str(folder): size for folder, size in sizes.items() if size > MAX_ENTRIES} == {}


def test_files_stay_small():
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for folder in OURS
        for path in sources(folder)
        if (lines := path.read_text().count("\n")) > MAX_LINES
    ]
    assert long == []
