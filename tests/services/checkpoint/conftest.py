"""The checkpoint of services/model's tests, and copies to damage."""

from tests.services.model.conftest import checkpoint_folder, damaged  # noqa: F401
