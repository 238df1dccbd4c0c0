"""The face of POST /v1/responses."""
