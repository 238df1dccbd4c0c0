"""Settings of a tokenizer replica."""

from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveInt

from services.runtime.settings import ServiceSettings


class TokenizerSettings(ServiceSettings):
    """One field per MOONSHARD_* variable."""

    model: Path = Field(description="Folder of the checkpoint.")
    threads: PositiveInt = Field(2, description="Threads for texts that are too long for the event loop.")
    max_waiting: PositiveInt = Field(256, description="Long texts that are encoded or queued. More are refused.")
    max_waiting_bytes: PositiveInt = Field(
        128 * 1024 * 1024, description="Bytes of all long texts that are encoded or queued. More are refused."
    )
    max_request_bytes: PositiveInt = Field(
        16 * 1024 * 1024, description="Size of one gRPC request, about ten times a full context."
    )
    max_remembered_bytes: NonNegativeInt = Field(
        256 * 1024 * 1024,
        description="Memory for texts and their tokens, so that the next turn encodes only what is new.",
    )
