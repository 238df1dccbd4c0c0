"""python -m tests.bench: every benchmark, one after another, in one run. Needs a quiet machine.

`tests.bench.abuse.soak` and `tests.bench.abuse.fuzz` take too long for that and are run by themselves.
"""

import sys

from tests.bench import (
    constraints,
    cpu_kernels,
    engines,
    gateway,
    laptop,
    losses,
    observing,
    scale,
    speculation,
    store,
    vision,
)
from tests.bench.abuse import admission, liveness
from tests.bench.wire import dispatch, stalls, waiting
from tests.cluster import layouts


def main() -> None:
    """Run the benchmarks that the command line names, or all."""
    parts = {
        "kernels": cpu_kernels.main,
        "dispatch": dispatch.main,
        "stalls": stalls.main,
        "waiting": waiting.main,
        "store": store.main,
        "constraints": constraints.main,
        "gateway": gateway.main,
        "liveness": liveness.main,
        "admission": admission.main,
        "vision": vision.main,
        "engines": engines.main,
        "laptop": laptop.main,
        "losses": losses.main,
        "layouts": layouts.main,
        "scale": scale.main,
        "speculation": speculation.main,
        "observing": observing.main,
    }
    chosen = sys.argv[1:] or list(parts)
    sys.argv[1:] = []
    unknown = [name for name in chosen if name not in parts]
    if unknown:
        sys.exit(f"no benchmark {unknown[0]!r}; there are: {', '.join(parts)}")
    for name in chosen:
        parts[name]()


if __name__ == "__main__":
    main()
