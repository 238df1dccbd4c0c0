"""What every test shares: poisoned uninitialised memory and the shared oracles."""

import os
from pathlib import Path

import pytest
import torch

# Where there is no GPU, Triton's kernels run in its interpreter; Triton looks at this once, while it is imported.
if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else `nan_filled_empty` makes products fail
else:
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """One thread: small tensors gain nothing from more, and the clusters of the tests need the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nan_filled_empty():
    """`torch.empty` returns NaN, so that a kernel that forgets an element is caught."""
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
