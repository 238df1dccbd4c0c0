"""Checks and times every kernel on a GPU: `python -m tests.bench.gpu_kernels`."""
