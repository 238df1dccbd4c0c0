"""The checkpoint of the tests of services/model, and copies of it to damage."""

from tests.services.model.conftest import checkpoint_folder, damaged  # noqa: F401
