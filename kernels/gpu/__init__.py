"""The operations on NVIDIA GPUs: Triton kernels, and cuBLAS through PyTorch for dense products."""
