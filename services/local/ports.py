"""Free TCP ports."""

import socket
from errno import EADDRINUSE

NUM_TRIED = 100


def free_port(host: str, wanted: int) -> int:
    """The first port from `wanted` on that nobody listens on at `host`; OSError if there is none near.

    Somebody else may take it before it is used; the process that wants to listen there then says so.
    """
    for port in range(wanted, min(wanted + NUM_TRIED, 65536)):
        if _is_free(host, port):
            return port
    raise OSError(f"no free port at {host} from {wanted} on")


def any_free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno == EADDRINUSE:
                return False
            raise
    return True
