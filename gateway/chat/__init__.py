"""The face of POST /v1/chat/completions."""
