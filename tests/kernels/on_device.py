"""Runs an implementation on a GPU for tests whose tensors are on the CPU."""

from torch import Tensor

from kernels.interface import Kernels


class OnDevice:
    """Moves arguments to the device and results back; arguments that an operation writes to are copied back too."""

    def __init__(self, kernels: Kernels, device: str) -> None:
        self._kernels, self._device = kernels, device

    def pack_experts(self, experts):
        return self._kernels.pack_experts(tuple(part.to(self._device) for part in expert) for expert in experts)

    def write_latent(self, cache, *arguments):
        self._write("write_latent", cache, arguments)

    def norm_rope_store(self, cache, *arguments):
        self._write("norm_rope_store", cache, arguments)

    def _write(self, name, cache, arguments):
        moved = cache.to(self._device)
        getattr(self._kernels, name)(moved, *map(self._moved, arguments))
        cache.copy_(moved)

    def __getattr__(self, name):
        operation = getattr(self._kernels, name)

        def run(*arguments, **options):
            out = operation(*map(self._moved, arguments), **{key: self._moved(value) for key, value in options.items()})
            return self._back(out)

        return run

    def _moved(self, value):
        return value.to(self._device) if isinstance(value, Tensor) else value

    def _back(self, value):
        if isinstance(value, tuple):
            return tuple(map(self._back, value))
        return value.cpu() if isinstance(value, Tensor) else value
