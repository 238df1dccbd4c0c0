"""Environment variables that all processes of a cluster share."""

from collections.abc import Mapping

# Large messages are allocated on the heap and their memory is kept, because getting zeroed pages from the system takes
# several times as long as filling a message (8 MB: 12.2 ms against 1.3 ms).
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "67108864",
}

SHARED = {
    **MALLOC,
    # No service forks; without this setting every gRPC call takes a lock that protects against forks.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # A crash in native code prints its stack, and output is not buffered, so that no last lines are lost.
    "PYTHONFAULTHANDLER": "1",
    "PYTHONUNBUFFERED": "1",
}


def cluster_environment(environ: Mapping[str, str], num_threads: int, *, is_crowded: bool) -> dict[str, str]:
    """What every process inherits: the caller's environment, and over it what makes these processes fast.

    num_threads  for tensor arithmetic in each process
    is_crowded   all processes together have more such threads than there are cores

    MOONSHARD_* variables of the caller are passed on: they reach every service that knows them, below what
    `process_specs` sets.
    """
    threads = {name: str(num_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # Spinning threads starve the thread they wait for when cores are scarce.
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"} if is_crowded else {}
    return {**environ, **SHARED, **threads, **waiting}
