"""Starts a program that dies with its supervisor: `python launch.py SUPERVISOR_PID PROGRAM ARGUMENT...`.

PR_SET_PDEATHSIG makes the kernel kill the program when the thread that started it ends for any reason, so not even
`kill -9` of the supervisor leaves a process behind. It must be requested between fork and exec. Python's `preexec_fn`
runs there too, but may deadlock in a parent with threads. This script requests it and then becomes the real program,
which takes 20 ms. The alternative, a pipe that every child watches, would need a thread in each service and could not
cover Redis. Outside Linux, where there is no prctl, the program is started without it.

Run it with `-I -S`: it needs only the standard library and nothing from the environment.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main() -> None:
    supervisor_pid, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
        # If the supervisor died before the request, the signal would never come.
        if os.getppid() != supervisor_pid:
            sys.exit("moonshard: the supervisor is gone")
    try:
        os.execvp(program, sys.argv[2:])
    except OSError as error:
        sys.exit(f"moonshard: cannot start {program}: {error.strerror}")


if __name__ == "__main__":
    main()
