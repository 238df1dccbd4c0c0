"""The tensors of the vision tower and the projector, and nothing else of the checkpoint."""

import torch
from torch import Tensor

from services.checkpoint.config import VisionConfig
from services.model.checkpoint import Checkpoint
from services.model.device import CPU
from services.model.memory import check_room, vision_bytes
from services.model.tensor_names import vision_specs
from services.runtime.errors import CheckpointError
from services.runtime.liveness import LIVENESS


def load_vision(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device = CPU
) -> tuple[VisionConfig, dict[str, Tensor]]:
    """The sizes and the weights by name, copied out of the mapped files to the device, into `dtype`.

    Raises CheckpointError if the checkpoint has no vision tower, or a tensor of it is missing or of another form.
    """
    config = checkpoint.config.vision
    if config is None:
        raise CheckpointError(f"{checkpoint.path}: expected vision_config in config.json, found none")
    needs = {"tower and projector": vision_bytes(config, dtype)}
    check_room("the vision process", needs, device)
    LIVENESS.expect(sum(needs.values()))
    views = {
        spec.name: checkpoint.tensor(spec.name, shape=spec.shape, dtype=spec.dtype) for spec in vision_specs(config)
    }
    return config, {name: view.to(device, dtype, copy=True) for name, view in views.items()}
