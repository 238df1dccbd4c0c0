"""The process that makes recipes: one ask a line on its standard input, one answer a line on its standard output.

Every ask is worked on in a fork, so that the kernel can end it where it takes more computing time or memory than it
may have, also inside of native code, without a process to start again. It ends with its input.
"""

import json
import os
import resource
import signal
import sys

from services.attention.constraint.recipes import Ask, byte_tokenizer, make_recipe
from services.runtime.errors import InvalidRequest

MAX_MEMORY_BYTES = 2 * 1024**3


def answer(ask: Ask) -> dict[str, object]:
    """A recipe, or what is wrong with the ask."""
    try:
        return {"recipe": make_recipe(ask).dump()}
    except InvalidRequest as error:
        return {"refusal": error.message}
    except (MemoryError, RecursionError):
        return {"refusal": "it is too large to compile"}


def answer_within(ask: Ask, seconds: float, niceness: int) -> dict[str, object]:
    """The same from a fork, or its end: `time`, or the code with which it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.nice(niceness)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        # Its signal ends the process. Time of waiting does not count.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer(ask), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status == 0:
        return dict(json.loads(text))
    code = os.waitstatus_to_exitcode(status)
    return {"end": "time" if code == -signal.SIGPROF else f"{code}"}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    byte_tokenizer()
    for line in sys.stdin:
        ask, seconds, niceness = json.loads(line)
        sys.stdout.write(f"{json.dumps(answer_within(Ask(*ask), seconds, niceness))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
