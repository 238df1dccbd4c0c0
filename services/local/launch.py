"""Starts one program that dies with its supervisor: `python launch.py SUPERVISOR_PID PROGRAM ARGUMENT...`.

The kernel kills the program when the thread that started it ends, however it ends (PR_SET_PDEATHSIG), so not even
`kill -9` of the supervisor leaves a process behind. The request has to be made between fork and exec. Python's
`preexec_fn` would run there too, but may deadlock in a parent with threads; a program of its own that asks and then
becomes the real one cannot. It costs 20 ms. The alternative, a pipe that every child watches, would need a thread in
each service and could not cover Redis. Where there is no prctl (outside Linux) the program is started without this.

Run as a script with `-I -S`: nothing but the standard library, nothing from the environment.
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
        # The supervisor may have died before the request was made; then the signal would never come.
        if os.getppid() != supervisor_pid:
            sys.exit("moonshard: the supervisor is gone")
    try:
        os.execvp(program, sys.argv[2:])
    except OSError as error:
        sys.exit(f"moonshard: cannot start {program}: {error.strerror}")


if __name__ == "__main__":
    main()
