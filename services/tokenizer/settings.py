"""What a tokenizer is told at start."""

from pathlib import Path

from pydantic import PositiveInt

from services.runtime.settings import ServiceSettings


class TokenizerSettings(ServiceSettings):
    """One field per MOONSHARD_* variable."""

    model: Path  # folder of the checkpoint
    threads: PositiveInt = 2  # for texts that are too long for the event loop
    max_waiting: PositiveInt = 256  # long texts that are encoded or wait for it; more are refused
    max_request_bytes: PositiveInt = 16 * 1024 * 1024  # of one message, some ten times a full context
