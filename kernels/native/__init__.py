"""Native CPU kernels: C++ sources, their build, and the Python side that calls them."""
