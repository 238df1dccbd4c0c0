"""The process that makes recipes: one ask a line on its standard input, one answer a line on its standard output.

It bounds itself: the kernel ends it where one ask takes more computing time or memory than is allowed, also inside of
native code, and lets every other process of the machine go first. It ends with its input.
"""

import json
import os
import resource
import signal
import sys

from services.attention.constraint.recipes import Ask, make_recipe
from services.runtime.errors import InvalidRequest

COMPUTE_S = 2.0
MAX_MEMORY_BYTES = 2 * 1024**3
NICENESS = 15


def answer(line: str) -> str:
    """A recipe, or what is wrong with the ask."""
    try:
        return json.dumps({"recipe": make_recipe(Ask(*json.loads(line))).dump()})
    except InvalidRequest as error:
        return json.dumps({"refusal": error.message})
    except (MemoryError, RecursionError):
        return json.dumps({"refusal": "it is too large to compile"})


def main() -> None:
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        # Its signal ends the process. Time of waiting does not count.
        signal.setitimer(signal.ITIMER_PROF, COMPUTE_S)
        text = answer(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
