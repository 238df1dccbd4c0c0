"""Copies the bytes of a tensor to the host, in the order of the computation and without stopping it."""

import asyncio

import torch
from torch import Tensor

from services.model.device import landing


class HostCopy:
    """The bytes of a tensor as of now. Later computation does not change them, even while a GPU still sends them."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cpu:
            self._data = _as_bytes(tensor)
            return
        self._landing = landing(tensor).copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(torch.cuda.current_stream(tensor.device))

    async def data(self) -> bytes:
        """Return the bytes, once a GPU has sent them."""
        if self._arrived is not None:
            await asyncio.to_thread(self._arrived.synchronize)
            self._arrived, self._data = None, _as_bytes(self._landing)
        return self._data


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
