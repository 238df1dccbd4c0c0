"""What all tests share: parallel workers, NaN in uninitialised memory, data from outside the repository."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Deterministic products, which `nan_filled_empty` asks for, need this on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ROOT = Path(__file__).resolve().parent.parent
RELEASED = {  # file of a released checkpoint -> its name in the data beside the repository
    "config.json": "model_config.json",
    "tiktoken.model": "tiktoken.model",
    "tokenizer_config.json": "tokenizer_config.json",
}
CLUSTERS = ("tests/cluster/", "tests/services/nano/")  # their clusters would take the cores from each other


class ByFile(LoadScopeScheduling):
    """Give each file to one parallel worker, which makes its fixtures once, and all clusters to the same worker."""

    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if nodeid.startswith(CLUSTERS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


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
    # On a GPU some references have no deterministic form (cumsum), which this fixture does not test.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])


def missing(message: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data of others that tests compare with, in a folder beside the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        missing(f"there is no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the released `config.json`, `tiktoken.model` and `tokenizer_config.json` of K2.6."""
    if named := os.environ.get("MOONSHARD_RELEASED"):
        folder = Path(named)
        absent = [name for name in RELEASED if not (folder / name).is_file()]
        if absent:
            pytest.fail(f"MOONSHARD_RELEASED={named} has no {absent[0]}")
        return folder
    source = ROOT.parent / "shared" / "data" / "kimi-k2-tokenizer"
    if not source.is_dir():
        missing(f"MOONSHARD_RELEASED names no folder of a released checkpoint, and there is no {source}")
    folder = tmp_path_factory.mktemp("released")
    for name, name_there in RELEASED.items():
        (folder / name).symlink_to(source / name_there)
    return folder
