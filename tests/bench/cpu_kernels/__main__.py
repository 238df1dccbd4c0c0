"""python -m tests.bench.cpu_kernels"""

from tests.bench.cpu_kernels import main

if __name__ == "__main__":
    main()
