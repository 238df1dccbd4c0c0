"""Free TCP ports."""

import socket
from errno import EADDRINUSE

NUM_TRIED = 100


def free_port(host: str, wanted: int) -> int:
    """Return the first free port of `host` from `wanted` on. Raises OSError if none nearby is free.

    Another program may take the port before it is used; the process that tries to listen on it then reports that.
    """
    for port in range(wanted, min(wanted + NUM_TRIED, 65536)):
        if _is_free(host, port):
            return port
    raise OSError(f"no free port at {host} from {wanted} on")


def any_free_port() -> int:
    """Return a free port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As for servers, a port counts as free while its last connections are closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno == EADDRINUSE:
                return False
            raise
    return True
