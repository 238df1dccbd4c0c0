"""Requests that are refused."""

from services.runtime.errors import InvalidRequest


def invalid(field: str, rule: str) -> InvalidRequest:
    """Return the error for a field that breaks a rule. Its message names both: a client may see nothing else."""
    return InvalidRequest(f"{field}: {rule}", field=field)
