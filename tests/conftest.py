"""What every test shares: poisoned uninitialised memory and the shared oracles."""

import os
import sys
from pathlib import Path

import pytest

# Deterministic products, which `nan_filled_empty` asks for, need this on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ROOT = Path(__file__).resolve().parent.parent
CLUSTERS = ("tests/cluster", "tests/services/nano")  # their clusters would take the cores from each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each file to one of the parallel workers, for its fixtures' sake, and all clusters to the same one."""
    for item in items:
        folder = str(item.path.parent.relative_to(ROOT))
        group = "clusters" if folder in CLUSTERS else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    """Compute on one thread: small tensors gain nothing from more, and the clusters of the tests need the cores."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nan_filled_empty():
    """Fill `torch.empty` with NaN, so that a kernel that forgets an element is caught. Most tests never load torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    # On a GPU some references have no deterministic form (cumsum), which is none of this fixture's business.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The oracles beside the project; without them the test skips, and fails under CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        message = f"the oracles are not at {folder}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
