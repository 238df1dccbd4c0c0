"""The checkpoint of the expert servers, a stack for what a test starts, and servers that seal."""

import pytest

from tests.services.expert import serving
from tests.services.expert.conftest import model, stack  # noqa: F401


@pytest.fixture(autouse=True)
def seals(request, monkeypatch):
    """Have the servers of a test seal their frames where its transport is "sealed"."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("transport") == "sealed":
        monkeypatch.setattr(serving, "SEALS", True)
