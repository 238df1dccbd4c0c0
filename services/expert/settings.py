"""Settings of an expert replica."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from services.model.device import Device
from services.wire.places import WireSettings


class ExpertSettings(WireSettings):
    """One field per MOONSHARD_* variable."""

    model: Path = Field(description="Folder of the checkpoint.")
    device: Device = Field("auto", description="auto (a GPU if there is one), cpu or cuda.")
    kernels: Literal["auto", "amx", "avx512bf16", "avx512", "avx2", "portable", "reference"] = Field(
        "auto", description="Arithmetic of a CPU; auto: what the rule in kernels/README.md chooses."
    )
    threads: PositiveInt | None = Field(
        None, description="Threads of the kernels, all together. None: one per core that PyTorch finds."
    )
