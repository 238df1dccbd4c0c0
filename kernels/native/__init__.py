"""Native CPU kernels: C++ sources, their build, and the Python functions that call them."""
