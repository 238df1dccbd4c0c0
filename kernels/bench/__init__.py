"""Checks and times every kernel on a GPU: `python -m kernels.bench`."""
