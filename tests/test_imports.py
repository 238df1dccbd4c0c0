"""The table of architecture.md section 2: who may import whom."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("protos", "kernels", "services", "gateway", "tests")
SERVICES = ("tokenizer", "vision", "attention", "expert", "autoscaler")
NO_TORCH = ("protos", "services/runtime", "services/tokenizer", "services/autoscaler", "gateway")
TRAINING = "services/local/nano/train"

ALLOWED = {
    "protos": [],
    "kernels": [],
    "services/runtime": ["protos"],
    "services/model": ["protos", "services.runtime", "kernels"],
    "services/local": ["services.runtime", "services.model"],
    # Training is an offline tool, no process of the cluster: it must render and preprocess exactly as serving does.
    TRAINING: ["protos", "kernels", "services.local", "services.model", "services.tokenizer", "services.vision"],
    "gateway": ["protos", "services.runtime"],
    **{f"services/{name}": ["protos", "services.runtime", "services.model", "kernels"] for name in SERVICES},
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
    """The folder's sources without those of the training, which has a row of its own."""
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


def test_kernels_is_ours():
    spec = importlib.util.find_spec("kernels")
    assert spec is not None
    assert spec.origin == str(ROOT / "kernels" / "__init__.py")


def test_top_level_is_as_agreed():
    agreed = {
        *("pyproject.toml", "README.md", "protos", "services", "kernels", "helm", "tests", "gateway"),
        *("LICENSE", "CHANGELOG.md", "Makefile", "Dockerfile", "dist"),
    }
    assert {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} <= agreed


def test_files_stay_small():
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for folder in OURS
        for path in sources(folder)
        if (lines := path.read_text().count("\n")) > 300
    ]
    assert long == []
