"""The checkpoint of the expert servers, and a stack for what a test starts."""

from tests.services.expert.conftest import model, stack  # noqa: F401
