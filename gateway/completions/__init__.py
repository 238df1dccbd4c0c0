"""The face of POST /v1/completions."""
